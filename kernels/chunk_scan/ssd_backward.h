// The backward of Mamba-2's SSD through all of a row's chunks: chunk_scan_backward,
// state_passing_backward and chunk_state_backward, with less in between where the device gains by
// it: a GPU finds the gradients of the states that leave chunks in one walk, never writes those of
// the incoming ones, and reads x and dy once for all that goes through states.
#pragma once

#include <functional>

#include "kernels/core/context.h"

namespace sluice {

// Where later tokens of the row lie elsewhere, the gradient of the state that leaves these must be
// found first, and who finds it may need what these tokens' outputs give to that of the state
// before them, (B, H, P, N): the fold writes it. Called once, and calls the fold at most once.
using GradientFold = std::function<void(const TensorView& dinitial)>;
using FindGradient = std::function<ConstTensorView(const GradientFold& fold)>;

struct SsdBackward {
  ConstTensorView dy = {};         // (B, T, H, P)
  ConstTensorView x = {};          // (B, T, H, P), a slice
  ConstTensorView B = {};          // (B, T, G, N), a slice
  ConstTensorView C = {};          // (B, T, G, N), a slice
  ConstTensorView dt = {};         // (B, T, H)
  ConstTensorView cum = {};        // (B, T, H)
  ConstTensorView D = {};          // (H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView incoming = {};   // (B, M, H, P, N) of x's dtype, as of entering_states
  ConstTensorView decay = {};      // (B, M, H), as of entering_states
  ConstTensorView dfinal = {};     // (B, H, P, N), optional; absent: 0
  FindGradient find_dfinal = {};   // or what finds it
  TensorView dx = {};              // (B, T, H, P), overwritten
  TensorView dB = {};              // (B, T, G, N), overwritten
  TensorView dC = {};              // (B, T, G, N), overwritten
  TensorView ddt = {};             // (B, T, H), overwritten
  TensorView dcum = {};            // (B, T, H), overwritten
  TensorView dD = {};              // (H), accumulated
  int64_t chunk = 0;               // Q
};
void ssd_backward(const Context& ctx, const SsdBackward& args);

}  // namespace sluice
