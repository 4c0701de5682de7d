// What decides the bits of a run besides the program, as far as this machine goes.
#pragma once

#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "trainer/checkpoint/manifest.h"

namespace sluice {

RuntimeInfo runtime_info(Device device);

// One line per difference that may change bits: device, library, instruction set. Threads do not,
// and a GPU's host does not. Of a checkpoint that names no device, device is empty.
std::vector<std::string> runtime_changes(const RuntimeInfo& saved, const RuntimeInfo& present);

}  // namespace sluice
