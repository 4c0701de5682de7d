// Sums over the threads of a warp, of a part of it or of a block, in an order that depends on
// nothing but their number.
#pragma once

#include <cstdint>

namespace sluice::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

// On every lane, over the kLanes neighbours that it is one of: a power of two. T: float or double.
template <int kLanes = kWarp, class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

template <int kLanes = kWarp>
__device__ float warp_max(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
  return value;
}

// On every thread of a block of kThreads. `room` holds one number a warp; it may be used again
// after the call.
template <int kThreads, class T>
__device__ T block_sum(T value, T* room) {
  constexpr int kWarps = kThreads / kWarp;
  value = warp_sum(value);
  if constexpr (kWarps == 1) return value;
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += room[warp];
  __syncthreads();
  return total;
}

}  // namespace sluice::cuda
