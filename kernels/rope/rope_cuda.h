// The CUDA side of rope, as its dispatcher sees it.
#pragma once

#include "kernels/rope/rope.h"

namespace sluice::cuda {

// direction: 1 forward, -1 backward.
void rope(const Context& ctx, const Rope& args, int direction);

}  // namespace sluice::cuda
