// The state that each chunk of Mamba-2's SSD adds, from a zero state, and the chunk's decay
// (Dao and Gu, 2024, section 6.2: right factors of the off-diagonal blocks).
// l is the last token of chunk m; head h reads group g = h * G / H.
//
//   state[m,h] = sum_s exp(cum[l,h] - cum[s,h]) * dt[s,h] * x[s,h] B[s,g]^T,
//                over s in m with s >= doc_begin[l]
//   decay[m,h] = exp(cum[l,h]), exactly 0 if a document starts in m, which is to say if
//                doc_begin[l] >= the first token of m
//
// Backward, from dstate (the gradient of each chunk's outgoing state):
//   dx += , dB +=, ddt +=, and dcum += the log-decay shares:
//     dcum[s] -= w, dcum[l] += w,  w = exp(cum[l] - cum[s]) dt[s] <dstate, x[s] B[s]^T>
//   and, from dlog_decay (gradient of log(decay), from state_passing, 0 where decay is 0):
//     dcum[l] += dlog_decay[m]
// These ADD to what chunk_scan_backward wrote.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct ChunkStateForward {
  ConstTensorView x = {};          // (B, T, H, P), a slice
  ConstTensorView B = {};          // (B, T, G, N), a slice
  ConstTensorView dt = {};         // (B, T, H)
  ConstTensorView cum = {};        // (B, T, H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  TensorView state = {};           // (B, M, H, P, N) statistics
  TensorView decay = {};           // (B, M, H) statistics
  int64_t chunk = 0;               // Q
};
void chunk_state_forward(const Context& ctx, const ChunkStateForward& args);
// Throws unless all but the state have the shapes above.
void check_chunk_state_inputs(const Context& ctx, const ChunkStateForward& args);

struct ChunkStateBackward {
  ConstTensorView dstate = {};      // (B, M, H, P, N) statistics, or of x's dtype
  ConstTensorView dlog_decay = {};  // (B, M, H)
  ConstTensorView x = {};           // (B, T, H, P)
  ConstTensorView B = {};           // (B, T, G, N)
  ConstTensorView dt = {};          // (B, T, H)
  ConstTensorView cum = {};         // (B, T, H)
  ConstTensorView doc_begin = {};   // (B, T) i32, local
  TensorView dx = {};               // (B, T, H, P), added to
  TensorView dB = {};               // (B, T, G, N), added to
  TensorView ddt = {};              // (B, T, H), added to
  TensorView dcum = {};             // (B, T, H), added to
  int64_t chunk = 0;
};
void chunk_state_backward(const Context& ctx, const ChunkStateBackward& args);

}  // namespace sluice
