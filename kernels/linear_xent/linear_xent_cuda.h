// The CUDA side of linear_xent, as its dispatcher sees it.
#pragma once

#include "kernels/core/context.h"
#include "kernels/linear_xent/linear_xent_chunk.h"

namespace sluice::cuda {

// Rows of logits are padded to a multiple of 16 bytes, and that padding may be written.
void xent_chunk(const Context& ctx, const XentChunk& chunk);
void xent_loss_sum(const Context& ctx, const ConstTensorView& losses, const TensorView& loss_sum);

}  // namespace sluice::cuda
