// The CPU side of ssd_step, as its dispatcher sees it.
#pragma once

#include "kernels/ssd_step/ssd_step.h"

namespace sluice::cpu {

template <class T>
void ssd_step(const SsdStep& args);

}  // namespace sluice::cpu
