// The CUDA side of ssd_step, as its dispatcher sees it.
#pragma once

#include "kernels/ssd_step/ssd_step.h"

namespace sluice::cuda {

void ssd_step(const Context& ctx, const SsdStep& args);

}  // namespace sluice::cuda
