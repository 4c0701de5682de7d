// The CPU side of state_passing, as its dispatcher sees it.
#pragma once

#include "kernels/state_passing/state_passing.h"

namespace sluice::cpu {

template <class T>
void state_passing_forward(const StatePassingForward& args);
template <class T>
void state_passing_backward(const StatePassingBackward& args);

}  // namespace sluice::cpu
