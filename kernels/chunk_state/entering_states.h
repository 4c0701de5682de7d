// The states that enter the chunks of Mamba-2's SSD: chunk_state_forward and then
// state_passing_forward, in one walk over the chunks where the device gains by it: what each chunk
// adds is then never written.
#pragma once

#include <functional>

#include "kernels/core/context.h"

namespace sluice {

// Where earlier tokens of the row lie elsewhere, the state that enters these must be found first,
// and who finds it may need what these tokens make of a zero state, (B, H, P, N), and their decay,
// B * H numbers: the fold writes both. A FindState is called once and calls the fold at most once.
using StateFold = std::function<void(const TensorView& state, const TensorView& decay)>;
using FindState = std::function<ConstTensorView(const StateFold& fold)>;

struct EnteringStates {
  ConstTensorView x = {};          // (B, T, H, P), a slice
  ConstTensorView B = {};          // (B, T, G, N), a slice
  ConstTensorView dt = {};         // (B, T, H)
  ConstTensorView cum = {};        // (B, T, H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView initial = {};    // (B, H, P, N) statistics, optional; absent: 0
  FindState find_initial = {};     // or what finds it
  // (B, M, H, P, N) of x's dtype, an operand of products: the state before each chunk. What is
  // carried from chunk to chunk is of the statistics' dtype.
  TensorView incoming = {};
  TensorView decay = {};        // (B, M, H) statistics, as of chunk_state_forward
  TensorView final_state = {};  // (B, H, P, N), optional
  int64_t chunk = 0;            // Q
};
void entering_states(const Context& ctx, const EnteringStates& args);

// The fold alone, of args without states.
void fold_states(const Context& ctx, const EnteringStates& args, const TensorView& state,
                 const TensorView& decay);

}  // namespace sluice
