// The CUDA side of grad_norm, as its dispatcher sees it.
#pragma once

#include <algorithm>

#include "kernels/grad_norm/grad_norm.h"

namespace sluice::cuda {

void block_squares(const Context& ctx, const BlockSquares& args);

// partial: (num_partials(places)) f64, scratch. Partial sums are of equally many places, so that
// zeros behind the last one change no bit.
inline constexpr int64_t kPlacesOfPartial = 2048;
inline int64_t num_partials(int64_t places) {
  return std::max<int64_t>(1, (places + kPlacesOfPartial - 1) / kPlacesOfPartial);
}
void ordered_sum(const Context& ctx, const OrderedSum& args, TensorView partial);

void clip_gradient(const Context& ctx, const ClipGradient& args);

}  // namespace sluice::cuda
