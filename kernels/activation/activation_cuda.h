// The CUDA side of activation, as its dispatcher sees it.
#pragma once

#include "kernels/activation/activation.h"

namespace sluice::cuda {

void activation_forward(const Context& ctx, const ActivationForward& args);
void activation_backward(const Context& ctx, const ActivationBackward& args);

}  // namespace sluice::cuda
