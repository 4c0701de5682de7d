// The CUDA side of causal_conv1d, as its dispatcher sees it.
#pragma once

#include <algorithm>

#include "kernels/causal_conv1d/causal_conv1d.h"

namespace sluice::cuda {

// How work is cut, by the shape alone: a warp walks over some tokens of kConvChannels channels,
// kConvAhead at a time, and a block has kConvWarps such warps.
inline constexpr int kConvWarps = 4;
inline constexpr int64_t kConvChannels = 128;
inline constexpr int kConvAhead = 8;
inline constexpr int kConvBackwardResident = 3;  // blocks of a processor

// Taps of the kernels that keep a window of rows in registers, for silu = true, and channels of
// their threads, whose multiple C must be. All else takes the plain kernels.
inline constexpr int kConvTaps = 4, kConvWidth = 4;
constexpr bool conv_holds(int64_t C, int64_t K) { return K == kConvTaps && C % kConvWidth == 0; }

constexpr int64_t conv_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t conv_tiles(int64_t C) { return conv_ceil_div(C, kConvChannels); }

// Tokens of a warp in the forward: few, so that warps start and end at all times (of 16, 24, 32, 56
// and more, 24 was the best on an H100).
inline constexpr int64_t kConvForwardRows = 24;

// The same in the backward, where a warp goes through whole groups of rows, 3 of which are behind
// its own, and pays about as much as for one group more for its beginning and end: such that the
// last blocks to start find the machine full, of an H100. Walks of 461 tokens were slower than
// short ones there (C 5376).
constexpr int64_t conv_backward_rows(int64_t B, int64_t T, int64_t C) {
  constexpr int64_t kHeld = 132 * kConvBackwardResident, kMostGroups = 24;
  int64_t best = 0, least = 0;
  for (int64_t groups = kMostGroups; groups >= 2; --groups) {
    const int64_t rows = groups * kConvAhead - 3, pieces = B * conv_ceil_div(T, rows);
    const int64_t blocks = conv_ceil_div(pieces, kConvWarps) * conv_tiles(C);
    const int64_t time = conv_ceil_div(blocks, kHeld) * (groups + 1);
    if (best == 0 || time < least) best = rows, least = time;
  }
  return best;
}

// Partial sums of the parameter gradients, one a row of blocks: (C, K) of the weight, then C of the
// bias.
constexpr int64_t conv_partials(int64_t B, int64_t T, int64_t C) {
  const int64_t pieces = B * conv_ceil_div(T, conv_backward_rows(B, T, C));
  return std::max<int64_t>(1, conv_ceil_div(pieces, kConvWarps));
}

void causal_conv1d_forward(const Context& ctx, const CausalConv1dForward& args);
// partial: (conv_partials(B, T, C), C * K + C) f32
void causal_conv1d_backward(const Context& ctx, const CausalConv1dBackward& args,
                            const TensorView& partial);
void causal_conv1d_step(const Context& ctx, const CausalConv1dStep& args);

}  // namespace sluice::cuda
