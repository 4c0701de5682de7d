// The CPU side of chunk_state, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_state/chunk_state.h"

namespace sluice::cpu {

// The reference.
template <class T>
void chunk_state_forward(const ChunkStateForward& args);
template <class T>
void chunk_state_backward(const ChunkStateBackward& args);

// The same through matrix products, for float. In double it is there to be tested.
template <class T>
void chunk_state_tiles_forward(const ChunkStateForward& args);
template <class T>
void chunk_state_tiles_backward(const ChunkStateBackward& args);

}  // namespace sluice::cpu
