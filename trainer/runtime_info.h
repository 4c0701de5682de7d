// What decides the bits of a run besides the program, as far as this machine goes.
#pragma once

#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"

namespace sluice {

RuntimeInfo runtime_info();

// One line per difference that may change bits: library, instruction set. (Threads do not.)
std::vector<std::string> runtime_changes(const RuntimeInfo& saved, const RuntimeInfo& present);

}  // namespace sluice
