// What a device is, and what computes its products, for logs and checkpoints: with another one a
// run may go on with other bits.
#pragma once

#include <string>

#include "kernels/core/device.h"

namespace sluice {

// "NVIDIA H100 80GB HBM3"; "cpu".
std::string device_name(Device device);
// "cuBLASLt 13.0.2"; empty of the CPU, whose library blas_version() names.
std::string device_libraries(Device device);

// Dense bf16 products, FLOP/s, as the vendor states it for a GPU of this name: what published
// shares are of. 0 of one that is not known here.
double published_peak_flops(const std::string& name);

}  // namespace sluice
