// Hopper's own, beside its copy engine: clusters of blocks, and products of a warpgroup (wgmma),
// which reads its operands from shared memory while the threads go on. Only for code that is built
// for sm_90a (under __CUDA_ARCH_FEAT_SM90_ALL).
#pragma once

#include <cstdint>

#include "kernels/device/copy_engine.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/warp_roles.cuh"

namespace sluice::cuda {

// What this thread wrote to shared memory is seen by copy engine and tensor cores after a barrier
// that follows.
__device__ inline void fence_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Threads of a block that meet without the others. `name` 0 is __syncthreads's.
__device__ inline void named_barrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}

// All threads of all blocks of the cluster; what was written to shared memory before is seen after.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
__device__ inline int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return int(rank);
}

// An operand of wgmma in shared memory, in rows of 128 bytes (64 bf16) whose 16-byte pieces the
// copy engine permutes (CU_TENSOR_MAP_SWIZZLE_128B). `begin` is in a tile aligned to 1024 bytes.
//   rows are M or N: eight rows are 1024 bytes; the next 16 of K are 32 bytes on
//   rows are K:      `distance` bytes from 64 of M or N to the next 64;
//                    the next 16 of K are 2048 bytes on
__device__ inline uint64_t wgmma_operand(const void* begin, int distance = 16) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | uint64_t(distance >> 4) << 16 |
         uint64_t(shared_address(begin) >> 4 & 0x3fff);
}

// Between writing registers of D and the first product into them.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most kPending committed groups are unfinished.
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// D (64, 256) = A (64, 16) B (16, 256) + (add ? D : 0), by four warps. kARowsAreK: A's rows in
// shared memory are K, not M; likewise B. Warp w of the four has rows 16 w of D, and in them d[4 j]
// to d[4 j + 3] is its Accumulator of columns 8 j.
template <bool kARowsAreK, bool kBRowsAreK>
__device__ void wgmma_64x256(float (&d)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, add, 1, 1, %131, %132;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),
        "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),
        "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
        "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]),
        "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]),
        "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
        "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]),
        "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]),
        "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]),
        "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b), "r"(int(add)), "n"(int(kARowsAreK)), "n"(int(kBRowsAreK)));
}

// Of a kernel that is launched early: until the one launched before it has ended, and all that it
// wrote is seen. Else it is over already.
__device__ inline void wait_for_launch_before() {
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
}
// A kernel that is launched early after this one begins when a thread of every block has said this,
// as far as there is room beside this one.
__device__ inline void let_next_begin() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

// Clusters of so many neighbouring blocks; early: they may begin before the launch before has
// ended.
struct Clusters {
  int blocks = 1;
  bool early = false;
};

template <class... Parameters, class... Args>
void launch_clusters(const Context& ctx, const char* name, const Grid& grid,
                     const Clusters& clusters, void (*kernel)(Parameters...), Args&&... args) {
  if (grid.blocks.x == 0) return;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(grid.shared_bytes)));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = unsigned(clusters.blocks);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream_of(ctx);
  config.attrs = attributes;
  config.numAttrs = clusters.early ? 2 : 1;
  const cudaError_t status =
      cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Args>(args))...);
  SLUICE_CHECK(status == cudaSuccess, name, ": ", cudaGetErrorString(status), " at a launch of ",
               grid.blocks.x, " blocks of ", grid.threads.x, " threads in clusters of ",
               clusters.blocks, ", ", grid.shared_bytes, " bytes of shared memory");
}

}  // namespace sluice::cuda
