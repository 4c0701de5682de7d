// The output of each chunk of Mamba-2's SSD (Dao and Gu, 2024, section 6: diagonal blocks, and left
// factors of the off-diagonal blocks). Head h reads group g = h * G / H; s and t lie in one chunk.
//
//   y[t,h] = sum_{doc_begin[t] <= s <= t} (C[t,g] . B[s,g]) exp(cum[t,h] - cum[s,h]) dt[s,h] x[s,h]
//          + exp(cum[t,h]) incoming[m,h] C[t,g]      (only if doc_begin[t] < the chunk's
//                                                     first token)
//          + D[h] x[t,h]
//
// The backward overwrites dx, dB, dC, ddt, dcum and dincoming with the shares that flow through y;
// chunk_state_backward adds the shares that flow through the states. dD accumulates. Log-decay
// shares:
//   each pair (t, s):     dcum[t] += w, dcum[s] -= w,
//                         w = (C[t] . B[s]) exp(cum[t] - cum[s]) dt[s] <dy[t], x[s]>
//   the incoming state:   dcum[t] += exp(cum[t]) <dy[t], incoming C[t]>
#pragma once

#include "kernels/core/context.h"

namespace sluice {

// The length of chunks to take where up to `longest` tokens may be: a matter of speed, as results
// depend on it by rounding alone. By kind of device, dtype and shape.
int64_t chunk_to_take(Device device, DType dtype, int64_t head_dim, int64_t state_dim,
                      int64_t longest);

struct ChunkScanForward {
  ConstTensorView x = {};          // (B, T, H, P), a slice
  ConstTensorView B = {};          // (B, T, G, N), a slice
  ConstTensorView C = {};          // (B, T, G, N), a slice
  ConstTensorView dt = {};         // (B, T, H)
  ConstTensorView cum = {};        // (B, T, H)
  ConstTensorView D = {};          // (H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView incoming = {};   // (B, M, H, P, N) of x's dtype: an operand of products
  TensorView y = {};               // (B, T, H, P)
  int64_t chunk = 0;               // Q
};
void chunk_scan_forward(const Context& ctx, const ChunkScanForward& args);
// Throws unless all but incoming have the shapes above.
void check_chunk_scan_forward(const Context& ctx, const ChunkScanForward& args);

struct ChunkScanBackward {
  ConstTensorView dy = {};  // (B, T, H, P)
  ConstTensorView x = {};   // as in the forward ...
  ConstTensorView B = {};
  ConstTensorView C = {};
  ConstTensorView dt = {};
  ConstTensorView cum = {};
  ConstTensorView D = {};
  ConstTensorView doc_begin = {};
  ConstTensorView incoming = {};
  TensorView dx = {};         // (B, T, H, P), overwritten
  TensorView dB = {};         // (B, T, G, N), overwritten
  TensorView dC = {};         // (B, T, G, N), overwritten
  TensorView ddt = {};        // (B, T, H), overwritten
  TensorView dcum = {};       // (B, T, H), overwritten
  TensorView dincoming = {};  // (B, M, H, P, N), overwritten
  TensorView dD = {};         // (H), accumulated
  int64_t chunk = 0;
};
void chunk_scan_backward(const Context& ctx, const ChunkScanBackward& args);
// Throws unless all but dincoming have the shapes above.
void check_chunk_scan_backward(const Context& ctx, const ChunkScanBackward& args);

}  // namespace sluice
