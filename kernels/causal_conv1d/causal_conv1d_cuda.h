// The CUDA side of causal_conv1d, as its dispatcher sees it.
#pragma once

#include <algorithm>

#include "kernels/causal_conv1d/causal_conv1d.h"

namespace sluice::cuda {

// The backward gives a warp kConvBackwardRows tokens of a row, and sums parameter gradients over
// the kConvWarps warps of a block.
inline constexpr int kConvWarps = 4;
inline constexpr int64_t kConvBackwardRows = 61;

// Partial sums of the parameter gradients, one a block.
constexpr int64_t conv_blocks(int64_t B, int64_t T) {
  const int64_t pieces = B * ((T + kConvBackwardRows - 1) / kConvBackwardRows);
  return std::max<int64_t>(1, (pieces + kConvWarps - 1) / kConvWarps);
}
struct ConvPartials {
  TensorView weight = {};  // (conv_blocks(B, T), C, K) f32
  TensorView bias = {};    // (conv_blocks(B, T), C) f32
};

void causal_conv1d_forward(const Context& ctx, const CausalConv1dForward& args);
void causal_conv1d_backward(const Context& ctx, const CausalConv1dBackward& args,
                            const ConvPartials& partials);
void causal_conv1d_step(const Context& ctx, const CausalConv1dStep& args);

}  // namespace sluice::cuda
