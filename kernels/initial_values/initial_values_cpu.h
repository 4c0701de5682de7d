// The CPU side of initial_values, as its dispatcher sees it.
#pragma once

#include "kernels/initial_values/initial_values.h"

namespace sluice::cpu {

template <class T>
void initial_values(const InitialValues& args);

}  // namespace sluice::cpu
