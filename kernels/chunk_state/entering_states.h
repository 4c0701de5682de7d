// The states that enter the chunks of Mamba-2's SSD: chunk_state_forward and then
// state_passing_forward, in one walk over the chunks where the device gains by it: what each chunk
// adds is then never written. For whoever knows the state that enters the row; where that depends
// on other ranks' tokens, the two operators are called one by one.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct EnteringStates {
  ConstTensorView x = {};          // (B, T, H, P), a slice
  ConstTensorView B = {};          // (B, T, G, N), a slice
  ConstTensorView dt = {};         // (B, T, H)
  ConstTensorView cum = {};        // (B, T, H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView initial = {};    // (B, H, P, N), optional; absent: 0
  // (B, M, H, P, N) of x's dtype, an operand of products: the state before each chunk. What is
  // carried from chunk to chunk is of the statistics' dtype.
  TensorView incoming = {};
  TensorView decay = {};        // (B, M, H) statistics, as of chunk_state_forward
  TensorView final_state = {};  // (B, H, P, N), optional
  int64_t chunk = 0;            // Q
};
void entering_states(const Context& ctx, const EnteringStates& args);

}  // namespace sluice
