// The CUDA side of chunk_cumsum, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_cumsum/chunk_cumsum.h"

namespace sluice::cuda {

void chunk_cumsum_forward(const Context& ctx, const ChunkCumsumForward& args);

// partial: (B * M, 2H) scratch, each chunk's ddt_bias and dA_log.
void chunk_cumsum_backward(const Context& ctx, const ChunkCumsumBackward& args, TensorView partial);

}  // namespace sluice::cuda
