// The copy engine of Hopper (TMA), which moves boxes of tensors to and from shared memory by
// itself. What runs on the device is only for code that is built for sm_90a (under
// __CUDA_ARCH_FEAT_SM90_ALL).
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#include "kernels/core/cuda_check.h"
#include "kernels/device/warp_roles.cuh"

namespace sluice::cuda {

__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
// The box at (x, y, z) of the map's tensor, x along its rows; zeros where it reaches beyond.
__device__ inline void copy_box(void* shared, const CUtensorMap& map, SharedBarrier& arrived, int x,
                                int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&arrived.word)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same into the shared memory of every block of the cluster whose bit is set in `blocks`, at
// the same place; each one's own barrier counts the bytes.
__device__ inline void copy_box_to_all(void* shared, const CUtensorMap& map, SharedBarrier& arrived,
                                       int x, int y, int z, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;\n" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&arrived.word)), "r"(x), "r"(y), "r"(z), "h"(blocks)
      : "memory");
}

// The other way round: the box in shared memory to (x, y, z), as far as the tensor goes, or f32
// numbers of it added there. The thread that asks commits, and waits for all that it has committed.
// Other threads' writes to shared memory come before by fence_shared_writes() and a barrier.
__device__ inline void store_box(const CUtensorMap& map, const void* shared, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::
          "l"(&map),
      "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ inline void add_box(const CUtensorMap& map, const void* shared, int x, int y, int z) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], "
      "[%1];\n" ::"l"(&map),
      "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ inline void commit_boxes() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Shared memory may be written again, but that of the last kPending commits.
template <int kPending = 0>
__device__ void wait_until_boxes_are_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(kPending) : "memory");
}
__device__ inline void wait_until_boxes_are_stored() {
  asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory");
}

// What a block of a kernel that is empty but for sm_90a may have at most, for its launch bounds:
// the host learns from it whether the code that was loaded is whole.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <int kThreads>
inline constexpr int kThreadsIfWhole = kThreads;
#else
template <int kThreads>
inline constexpr int kThreadsIfWhole = 32;
#endif

// A GPU of compute capability 9.0 may have loaded code for an older one, or for any of 9.0: built
// for those, such a kernel is empty, and a block of it cannot have as many threads.
template <class... Parameters>
bool is_whole(void (*kernel)(Parameters...), int threads) {
  cudaFuncAttributes attributes;
  CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  return attributes.maxThreadsPerBlock >= threads;
}

// A tensor (z, y, x) of bf16 or f32 as the copy engine moves boxes of 128 bytes x `box_y` of it.
template <class T>
CUtensorMap tensor_map(const T* data, int64_t x, int64_t y, int64_t z, int64_t y_stride,
                       int64_t z_stride, int box_y) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    SLUICE_CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const cuuint64_t sizes[] = {cuuint64_t(x), cuuint64_t(y), cuuint64_t(z)};
  const cuuint64_t strides[] = {cuuint64_t(y_stride) * sizeof(T), cuuint64_t(z_stride) * sizeof(T)};
  const cuuint32_t box[] = {128 / sizeof(T), cuuint32_t(box_y), 1}, steps[] = {1, 1, 1};
  constexpr auto kType =
      std::is_same_v<T, float> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  const CUresult result =
      encode(&map, kType, 3, const_cast<T*>(data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  SLUICE_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", int(result),
               " for a tensor of (", z, ", ", y, ", ", x, "), rows ", y_stride, " apart");
  return map;
}

}  // namespace sluice::cuda
