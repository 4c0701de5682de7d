// Why a build with CUDA has no GPU to run on, in words for the user.
#pragma once

#include <string>

namespace sluice {

// What CUDA's runtime says on a machine where it finds no GPU. Versions as CUDA has them: 12080 is
// 12.8.
struct CudaState {
  int build = 0;               // of the CUDA that this build has
  int driver = 0;              // of the newest CUDA that the driver supports; 0: no driver
  bool driver_is_old = false;  // too old for the build, as the runtime finds
  std::string error = {};      // another one, but that there is no GPU
};
std::string why_no_cuda_device(const CudaState& state);

}  // namespace sluice
