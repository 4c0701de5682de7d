// Selective scan of Mamba, "S6" (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective
// State Spaces", 2023, algorithm 2), with softplus, skip and gate in the same pass.
//
//   dt[t,e]  = softplus(delta[t,e] + dt_bias[e])
//   a        = exp(dt * A[e,n]),  A = -exp(A_log);   a = 0 where a document starts (t ==
//   doc_begin[t]) h[t,e,n] = a * h[t-1,e,n] + dt[t,e] * u[t,e] * B[t,n] y[t,e]   = (sum_n C[t,n]
//   h[t,e,n] + D[e] u[t,e]) * silu(z[t,e])        (z absent: no gate)
//
// h[-1] is initial_state (absent: 0). The forward keeps h every kScanSpan tokens; the backward
// recomputes the states between, so that no (B, T, E, N) tensor is ever in memory. It can write y
// again for the weight gradient of out_proj, so that y need not be saved.
// All of u, delta, z, B, C may be column slices.
#pragma once

#include <span>
#include <string>

#include "kernels/core/context.h"

namespace sluice {

inline constexpr int64_t kScanSpan = 32;  // tokens between kept states

constexpr int64_t scan_spans(int64_t tokens) { return (tokens + kScanSpan - 1) / kScanSpan; }

struct SelectiveScanForward {
  ConstTensorView u = {};              // (B, T, E)
  ConstTensorView delta = {};          // (B, T, E), before bias and softplus
  ConstTensorView dt_bias = {};        // (E)
  ConstTensorView A_log = {};          // (E, N)
  ConstTensorView B = {};              // (B, T, N)
  ConstTensorView C = {};              // (B, T, N)
  ConstTensorView D = {};              // (E)
  ConstTensorView z = {};              // (B, T, E), optional
  ConstTensorView doc_begin = {};      // (B, T) i32, local
  ConstTensorView initial_state = {};  // (B, E, N) statistics, optional
  TensorView y = {};                   // (B, T, E)
  TensorView span_states =
      {};  // (B, scan_spans(T), E, N): h before each span's first token; optional
  TensorView final_state = {};  // (B, E, N), optional
};
void selective_scan_forward(const Context& ctx, const SelectiveScanForward& args);

struct SelectiveScanBackward {
  ConstTensorView dy = {};  // (B, T, E)
  ConstTensorView u = {};   // as in the forward ...
  ConstTensorView delta = {};
  ConstTensorView dt_bias = {};
  ConstTensorView A_log = {};
  ConstTensorView B = {};
  ConstTensorView C = {};
  ConstTensorView D = {};
  ConstTensorView z = {};  // optional
  ConstTensorView doc_begin = {};
  ConstTensorView span_states = {};   // (B, scan_spans(T), E, N) of the forward
  ConstTensorView dfinal_state = {};  // (B, E, N), optional
  TensorView du = {};                 // (B, T, E), overwritten
  TensorView ddelta = {};          // (B, T, E), overwritten: with respect to delta, before the bias
  TensorView dB = {};              // (B, T, N), overwritten
  TensorView dC = {};              // (B, T, N), overwritten
  TensorView dz = {};              // (B, T, E), overwritten; given exactly when z is
  TensorView y = {};               // (B, T, E), the forward's output again; optional
  TensorView ddt_bias = {};        // (E), accumulated
  TensorView dA_log = {};          // (E, N), accumulated
  TensorView dD = {};              // (E), accumulated
  TensorView dinitial_state = {};  // (B, E, N), overwritten; optional
};
void selective_scan_backward(const Context& ctx, const SelectiveScanBackward& args);

// The tokens of a row as one map of the state, for whoever holds only a part of the row:
//   h[T-1] = a[0] ... a[T-1] h[-1] + state,   a[0] ... a[T-1] = exp(A dt_sum)
// where a document starts in the row the product is 0, whatever dt_sum: it then is the sum over the
// row's last document. Reads no C, D or z and writes no y: about half of a forward.
struct SelectiveScanFold {
  ConstTensorView u = {};          // (B, T, E)
  ConstTensorView delta = {};      // (B, T, E)
  ConstTensorView dt_bias = {};    // (E)
  ConstTensorView A_log = {};      // (E, N)
  ConstTensorView B = {};          // (B, T, N)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  TensorView state = {};           // (B, E, N) statistics: the final state from a zero state
  TensorView dt_sum = {};          // (B, E) statistics
};
void selective_scan_fold(const Context& ctx, const SelectiveScanFold& args);

// The transpose, which is the backward's share of it that needs no states: what the outputs of
// these tokens alone give to the gradient of h[-1].
struct SelectiveScanReverseFold {
  ConstTensorView dy = {};         // (B, T, E)
  ConstTensorView delta = {};      // (B, T, E)
  ConstTensorView dt_bias = {};    // (E)
  ConstTensorView A_log = {};      // (E, N)
  ConstTensorView C = {};          // (B, T, N)
  ConstTensorView z = {};          // (B, T, E), optional
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  TensorView dinitial_state = {};  // (B, E, N) statistics, overwritten
};
void selective_scan_reverse_fold(const Context& ctx, const SelectiveScanReverseFold& args);

// The decays of such maps, of R consecutive spans of the rows:
//   decay[r,b,e,n] = exp(A[e,n] dt_sum[r,b,e]), exactly 0 if a document starts in span r of row b
struct SelectiveScanDecay {
  ConstTensorView dt_sum = {};         // (R, B * E) statistics
  ConstTensorView A_log = {};          // (E, N)
  ConstTensorView doc_begin = {};      // (B, row_tokens) i32, of whole rows
  std::span<const int64_t> cuts = {};  // R + 1: first token of every span, and the end of the last
  TensorView decay = {};               // (R, B * E * N) statistics
};
void selective_scan_decay(const Context& ctx, const SelectiveScanDecay& args);

// One token; the state is read and updated.
struct SelectiveScanStep {
  ConstTensorView u = {};        // (B, E)
  ConstTensorView delta = {};    // (B, E)
  ConstTensorView dt_bias = {};  // (E)
  ConstTensorView A_log = {};    // (E, N)
  ConstTensorView B = {};        // (B, N)
  ConstTensorView C = {};        // (B, N)
  ConstTensorView D = {};        // (E)
  ConstTensorView z = {};        // (B, E), optional
  TensorView state = {};         // (B, E, N)
  TensorView y = {};             // (B, E)
};
void selective_scan_step(const Context& ctx, const SelectiveScanStep& args);

// What a scan of E channels and N states costs more than need be on a device, for a log. Empty:
// nothing. first: of B, in rows that hold C next to it.
std::string describe_scan(Device device, DType dtype, int64_t E, int64_t N, int64_t first);

}  // namespace sluice
