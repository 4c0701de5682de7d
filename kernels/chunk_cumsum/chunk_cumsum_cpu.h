// The CPU side of chunk_cumsum, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_cumsum/chunk_cumsum.h"

namespace sluice::cpu {

template <class T>
void chunk_cumsum_forward(const ChunkCumsumForward& args);

// partial: (B * M, 2H) scratch, each chunk's ddt_bias and dA_log.
template <class T>
void chunk_cumsum_backward(const ChunkCumsumBackward& args, TensorView partial);

}  // namespace sluice::cpu
