// The CUDA side of grad_norm, as its dispatcher sees it.
#pragma once

#include "kernels/core/row_blocks.h"
#include "kernels/grad_norm/grad_norm.h"

namespace sluice::cuda {

void block_squares(const Context& ctx, const BlockSquares& args);

// partial: (sum_blocks(places).count) f64, scratch.
inline RowBlocks sum_blocks(int64_t places) { return RowBlocks(places, 128); }
void ordered_sum(const Context& ctx, const OrderedSum& args, TensorView partial);

void clip_gradient(const Context& ctx, const ClipGradient& args);

}  // namespace sluice::cuda
