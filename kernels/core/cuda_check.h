// Calls of the CUDA runtime, checked. For sources that are built with CUDA only.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/core/error.h"

namespace sluice::detail {

[[noreturn]] inline void cuda_failed(const char* call, cudaError_t status) {
  const ExitCode code = status == cudaErrorMemoryAllocation ? ExitCode::io : ExitCode::bug;
  throw Error(code, concat("CUDA: ", cudaGetErrorString(status), " in ", call));
}

}  // namespace sluice::detail

#define CUDA_CHECK(call)                                                               \
  do {                                                                                 \
    const cudaError_t cuda_status = (call);                                            \
    if (cuda_status != cudaSuccess) ::sluice::detail::cuda_failed(#call, cuda_status); \
  } while (0)
