// Step sizes and log-decay sums of Mamba-2's SSD (Dao and Gu, 2024, section 6).
// Chunks have Q tokens, M = ceil(T / Q) of them; the last may be shorter.
//
//   dt[t,h]  = clamp(softplus(dt_raw[t,h] + dt_bias[h]), dt_min, dt_max)
//   cum[t,h] = sum of dt[s,h] * A[h] over s from max(doc_begin[t], first token of t's chunk) to t,
//              A[h] = -exp(A_log[h])
// So cum restarts at chunk edges and at document starts; exp(cum[t] - cum[s]) is the decay from s
// to t for tokens of one chunk and one document. cum[t] includes a[t] itself.
//
// Backward: with c = dL/dcum and e = the reverse cumulative sum of c, restarted where cum restarts,
//   ddt_total[t] = ddt[t] + A * e[t];   dA_log += A * sum_t dt[t] e[t];
//   ddt_raw = ddt_total * sigmoid(dt_raw + dt_bias), 0 where dt was clamped;
//   ddt_bias += sum_t ddt_raw
// Sums run in double.
#pragma once

#include <limits>

#include "kernels/core/chunks.h"
#include "kernels/core/context.h"

namespace sluice {

struct ChunkCumsumForward {
  ConstTensorView dt_raw = {};     // (B, T, H), a slice of a projection
  ConstTensorView dt_bias = {};    // (H)
  ConstTensorView A_log = {};      // (H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  TensorView dt = {};              // (B, T, H) statistics
  TensorView cum = {};             // (B, T, H) statistics
  int64_t chunk = 0;               // Q
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();
};
void chunk_cumsum_forward(const Context& ctx, const ChunkCumsumForward& args);

struct ChunkCumsumBackward {
  ConstTensorView ddt = {};        // (B, T, H): direct shares
  ConstTensorView dcum = {};       // (B, T, H): all log-decay shares
  ConstTensorView dt_raw = {};     // (B, T, H)
  ConstTensorView dt_bias = {};    // (H)
  ConstTensorView A_log = {};      // (H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  TensorView ddt_raw = {};         // (B, T, H), overwritten
  TensorView ddt_bias = {};        // (H), accumulated
  TensorView dA_log = {};          // (H), accumulated
  int64_t chunk = 0;
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();
};
void chunk_cumsum_backward(const Context& ctx, const ChunkCumsumBackward& args);

}  // namespace sluice
