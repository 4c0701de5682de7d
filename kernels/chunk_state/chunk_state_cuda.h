// The CUDA side of chunk_state, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_state/chunk_state.h"

namespace sluice::cuda {

void chunk_state_forward(const Context& ctx, const ChunkStateForward& args);
void chunk_state_backward(const Context& ctx, const ChunkStateBackward& args);

}  // namespace sluice::cuda
