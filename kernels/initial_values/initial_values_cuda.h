// The CUDA side of initial_values, as its dispatcher sees it.
#pragma once

#include "kernels/initial_values/initial_values.h"

namespace sluice::cuda {

void initial_values(const Context& ctx, const InitialValues& args);

}  // namespace sluice::cuda
