// The CUDA side of grad_norm, as its dispatcher sees it.
#pragma once

#include "kernels/grad_norm/grad_norm.h"

namespace sluice::cuda {

void block_squares(const Context& ctx, const BlockSquares& args);

}  // namespace sluice::cuda
