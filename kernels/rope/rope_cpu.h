// The CPU side of rope, as its dispatcher sees it.
#pragma once

#include "kernels/rope/rope.h"

namespace sluice::cpu {

// direction: 1 forward, -1 backward.
template <class T>
void rope(const Rope& args, int direction);

}  // namespace sluice::cpu
