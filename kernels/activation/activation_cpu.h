// The CPU side of activation, as its dispatcher sees it.
#pragma once

#include "kernels/activation/activation.h"

namespace sluice::cpu {

template <class T>
void activation_forward(const ActivationForward& args);

template <class T>
void activation_backward(const ActivationBackward& args);

}  // namespace sluice::cpu
