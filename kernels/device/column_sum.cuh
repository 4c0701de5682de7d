// The second stage of sums over rows: blocks have written partial sums, here they are added up in
// one order.
#pragma once

#include "kernels/device/launch.cuh"

namespace sluice::cuda {

// total[c] += the sum over rows of partial[row][c]; both packed. A block owns kLanes columns; each
// of its kGroups groups of threads sums every kGroups-th row, then the groups are added in order.
// Narrow blocks, as what is summed lies in the L2 and its latency is all that there is to hide.
template <int kLanes, int kGroups>
__global__ void __launch_bounds__(kLanes* kGroups)
    add_column_sums_kernel(const float* partial, int64_t rows, int64_t columns, float* total) {
  __shared__ float of_group[kGroups][kLanes];
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int64_t column = blockIdx.x * int64_t(kLanes) + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t row = group; row < rows; row += kGroups) sum += partial[row * columns + column];
  }
  of_group[group][lane] = sum;
  __syncthreads();
  if (group != 0 || column >= columns) return;
  sum = 0;
#pragma unroll
  for (int other = 0; other < kGroups; ++other) sum += of_group[other][lane];
  total[column] += sum;
}

inline void add_column_sums(const Context& ctx, const char* name, const float* partial,
                            int64_t rows, int64_t columns, float* total) {
  constexpr int kLanes = 16, kGroups = 64;
  launch(ctx, name,
         {.blocks = unsigned(ceil_div(columns, kLanes)), .threads = unsigned(kLanes * kGroups)},
         add_column_sums_kernel<kLanes, kGroups>, partial, rows, columns, total);
}

}  // namespace sluice::cuda
