// The sequential part of a chunked linear recurrence: affine maps S_out = decay * S_in + state
// folded over the chunks of a row. The only operator whose work is ordered in time; it touches M
// states. The "chunks" may also be the spans of M ranks.
//
//   incoming[0] = initial (absent: 0);   incoming[m+1] = decay[m] * incoming[m] + state[m]
//   final = incoming[M];                 total_decay = product of decay[m]
//
// Backward: given dincoming[m] (what chunk_scan_backward found), in reverse:
//   doutgoing[M-1] = dfinal (absent: 0);  doutgoing[m-1] = dincoming[m] + decay[m] * doutgoing[m]
//   dlog_decay[m] = decay[m] * <doutgoing[m], incoming[m]>
//   dinitial      = dincoming[0] + decay[0] * doutgoing[0]
//
// Every output is optional: the fold alone (final_state, total_decay) and the reverse fold alone
// (dinitial) neither keep nor read the states between the chunks.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct StatePassingForward {
  ConstTensorView state = {};    // (B, M, H, P, N): what each chunk adds
  ConstTensorView decay = {};    // (B, M, H), linear
  ConstTensorView initial = {};  // (B, H, P, N), optional
  // (B, M, H, P, N), optional; may alias state. On GPUs it may be bf16, for those to whom it is an
  // operand of products and no more: what is passed on from chunk to chunk stays f32.
  TensorView incoming = {};
  TensorView final_state = {};  // (B, H, P, N), optional
  TensorView total_decay = {};  // (B, H), optional
};
void state_passing_forward(const Context& ctx, const StatePassingForward& args);

struct StatePassingBackward {
  ConstTensorView dincoming = {};  // (B, M, H, P, N)
  ConstTensorView incoming = {};   // as in the forward; given exactly when dlog_decay is
  ConstTensorView decay = {};      // (B, M, H)
  ConstTensorView dfinal = {};     // (B, H, P, N), optional
  TensorView doutgoing = {};  // (B, M, H, P, N), optional; may alias dincoming, or be bf16 as above
  TensorView dlog_decay = {};  // (B, M, H), overwritten; optional
  TensorView dinitial = {};    // (B, H, P, N), overwritten; optional
};
void state_passing_backward(const Context& ctx, const StatePassingBackward& args);

}  // namespace sluice
