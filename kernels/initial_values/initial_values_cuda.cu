// Initial values on the GPU, each by one thread. Some 80 integer operations a uniform value and a
// few hundred in double a normal one: by that count 1.3 G parameters take 20 ms, where they are
// needed.
//
// Compiled with --fmad=false, so that bits are those of the CPU.
#include <algorithm>

#include "kernels/device/launch.cuh"
#include "kernels/initial_values/initial_value.h"
#include "kernels/initial_values/initial_values_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 132 * 8;

__global__ void __launch_bounds__(kThreads)
    initial_values_kernel(Initializer initializer, RngKey key, int64_t first, int64_t count,
                          float* values) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < count; i += step)
    values[i] = float(portable::initial_value(initializer, key, first + i));
}

}  // namespace

void initial_values(const Context& ctx, const InitialValues& args) {
  const int64_t count = args.values.numel();
  launch(ctx, "initial_values",
         {.blocks = unsigned(std::min(ceil_div(count, kThreads), kMaxBlocks)), .threads = kThreads},
         initial_values_kernel, args.initializer, args.key, args.first, count,
         args.values.as<float>());
}

}  // namespace sluice::cuda
