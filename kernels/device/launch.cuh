// Starting kernels. An error names the operator; launches do not wait.
#pragma once

#include "kernels/core/context.h"
#include "kernels/core/cuda_check.h"

namespace sluice::cuda {

inline cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.handle);
}

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;  // dynamic
};

// `name` is the operator's: an error says it and the grid, and where the model runs it the branch
// and the shape (layers/model.cpp).
template <class... Parameters, class... Args>
void launch(const Context& ctx, const char* name, const Grid& grid, void (*kernel)(Parameters...),
            Args&&... args) {
  if (grid.blocks.x == 0) return;
  // A block has 48 KiB without asking for more. What a kernel declares itself counts too, and is
  // not known here.
  if (grid.shared_bytes > 0) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         int(grid.shared_bytes));
  }
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) {
    kernel<<<grid.blocks, grid.threads, grid.shared_bytes, stream_of(ctx)>>>(
        Parameters(std::forward<Args>(args))...);
    status = cudaGetLastError();
  }
  if (status != cudaSuccess) {
    throw Error(ExitCode::bug,
                concat(name, ": ", cudaGetErrorString(status), " at a launch of ", grid.blocks.x,
                       " x ", grid.blocks.y, " blocks of ", grid.threads.x, " threads, ",
                       grid.shared_bytes, " bytes of shared memory"));
  }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sluice::cuda
