#include <cublasLt.h>

#include "kernels/core/cuda_check.h"
#include "kernels/core/device_name.h"

namespace sluice {

std::string device_name(Device device) {
  if (device.is_cpu()) return "cpu";
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index));
  return properties.name;
}

std::string device_libraries(Device device) {
  if (device.is_cpu()) return "";
  const size_t version = cublasLtGetVersion();
  return concat("cuBLASLt ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace sluice
