// The second stage of sums over rows: blocks have written partial sums, here they are added up in
// one order.
#pragma once

#include "kernels/device/launch.cuh"

namespace sluice::cuda {

// total[c] += the sum over rows of partial[row][c]; both packed. A block owns kLanes columns; each
// of its kLanes groups of threads sums every kLanes-th row, then the groups are added in order.
template <int kLanes>
__global__ void __launch_bounds__(kLanes* kLanes)
    add_column_sums_kernel(const float* partial, int64_t rows, int64_t columns, float* total) {
  __shared__ float of_group[kLanes][kLanes];
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int64_t column = blockIdx.x * int64_t(kLanes) + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = group; row < rows; row += kLanes) sum += partial[row * columns + column];
  }
  of_group[group][lane] = sum;
  __syncthreads();
  if (group != 0 || column >= columns) return;
  sum = 0;
#pragma unroll
  for (int other = 0; other < kLanes; ++other) sum += of_group[other][lane];
  total[column] += sum;
}

inline void add_column_sums(const Context& ctx, const char* name, const float* partial,
                            int64_t rows, int64_t columns, float* total) {
  constexpr int kLanes = 32;
  launch(ctx, name,
         {.blocks = unsigned(ceil_div(columns, kLanes)), .threads = unsigned(kLanes * kLanes)},
         add_column_sums_kernel<kLanes>, partial, rows, columns, total);
}

}  // namespace sluice::cuda
