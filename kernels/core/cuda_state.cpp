#include "kernels/core/cuda_state.h"

#include "kernels/core/error.h"

namespace sluice {

std::string why_no_cuda_device(const CudaState& state) {
  const auto name = [](int version) { return concat(version / 1000, ".", version % 1000 / 10); };
  if (state.driver == 0) return "no GPU driver is installed: see nvidia-smi";
  if (state.driver_is_old) {
    return concat("the GPU driver supports CUDA up to ", name(state.driver), ", this build has ",
                  name(state.build), ": update the driver, or build with an older CUDA");
  }
  if (!state.error.empty()) return concat("GPUs cannot be used: ", state.error, ": see nvidia-smi");
  return "no GPU is found: see nvidia-smi and CUDA_VISIBLE_DEVICES";
}

}  // namespace sluice
