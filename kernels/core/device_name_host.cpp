// A build without CUDA: the host is the only device.
#include "kernels/core/device_name.h"

namespace sluice {

std::string device_name(Device) { return "cpu"; }
std::string device_libraries(Device) { return ""; }

}  // namespace sluice
