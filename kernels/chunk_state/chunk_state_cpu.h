// The CPU side of chunk_state, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_state/chunk_state.h"

namespace sluice::cpu {

template <class T>
void chunk_state_forward(const ChunkStateForward& args);
template <class T>
void chunk_state_backward(const ChunkStateBackward& args);

}  // namespace sluice::cpu
