// Tensor cores of sm_90a: products of a warpgroup (four neighbouring warps, the first of a number
// divisible by four), which run beside its other instructions and read B, and maybe A, from shared
// memory themselves. D and a register A are laid out as in mma.cuh: warp w of the group has rows
// 16 w .. 16 w + 15.
//
// Tiles in shared memory are SharedTile<64> of mma.cuh, aligned to 1024 bytes: 64 columns are the
// widest that the hardware's swizzle (128 bytes) knows.
#pragma once

#include "kernels/device/mma.cuh"

namespace sluice::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

// Where an operand lies, `ahead` elements from `data` on (a multiple of 8; so written, operands of
// one tile differ by an addition). `rows_k_contiguous`: rows are M or N, the tile's first element
// there is (row, k), k a multiple of 16. `rows_of_k`: rows are K, 16 of them; columns beyond 64 lie
// `panel_bytes` further, one SharedTile<64> after another.
__device__ inline uint64_t wgmma_operand(const Bf16* data, int ahead, uint32_t leading_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  const uint32_t place = ((shared_address(data) & 0x3ffff) >> 4) | leading_bytes >> 4 << 16;
  return kSwizzle128 | kEightRows | (place + uint32_t(ahead) * uint32_t(sizeof(Bf16)) / 16);
}
__device__ inline uint64_t rows_k_contiguous(const Bf16* data, int ahead = 0) {
  return wgmma_operand(data, ahead, 16);
}
__device__ inline uint64_t rows_of_k(const Bf16* data, uint32_t panel_bytes, int ahead = 0) {
  return wgmma_operand(data, ahead, panel_bytes);
}

// d = a b, or d += a b; K is 16. kTransposed: b is rows_of_k. The first product of a pipeline comes
// after wgmma_fence(), the last before wgmma_commit(); until wgmma_wait() nothing touches d and a.
template <bool kTransposed>
__device__ void wgmma(Accumulator (&d)[8], const FragmentA& a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred sum;\nsetp.ne.b32 sum, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, sum, 1, 1, %38;\n}\n"
      : "+f"(d[0].values[0]), "+f"(d[0].values[1]), "+f"(d[0].values[2]), "+f"(d[0].values[3]),
        "+f"(d[1].values[0]), "+f"(d[1].values[1]), "+f"(d[1].values[2]), "+f"(d[1].values[3]),
        "+f"(d[2].values[0]), "+f"(d[2].values[1]), "+f"(d[2].values[2]), "+f"(d[2].values[3]),
        "+f"(d[3].values[0]), "+f"(d[3].values[1]), "+f"(d[3].values[2]), "+f"(d[3].values[3]),
        "+f"(d[4].values[0]), "+f"(d[4].values[1]), "+f"(d[4].values[2]), "+f"(d[4].values[3]),
        "+f"(d[5].values[0]), "+f"(d[5].values[1]), "+f"(d[5].values[2]), "+f"(d[5].values[3]),
        "+f"(d[6].values[0]), "+f"(d[6].values[1]), "+f"(d[6].values[2]), "+f"(d[6].values[3]),
        "+f"(d[7].values[0]), "+f"(d[7].values[1]), "+f"(d[7].values[2]), "+f"(d[7].values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "l"(b), "r"(int(add)),
        "n"(int(kTransposed)));
}
template <bool kTransposed>
__device__ void wgmma(Accumulator (&d)[16], const FragmentA& a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred sum;\nsetp.ne.b32 sum, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, sum, 1, 1, %70;\n}\n"
      : "+f"(d[0].values[0]), "+f"(d[0].values[1]), "+f"(d[0].values[2]), "+f"(d[0].values[3]),
        "+f"(d[1].values[0]), "+f"(d[1].values[1]), "+f"(d[1].values[2]), "+f"(d[1].values[3]),
        "+f"(d[2].values[0]), "+f"(d[2].values[1]), "+f"(d[2].values[2]), "+f"(d[2].values[3]),
        "+f"(d[3].values[0]), "+f"(d[3].values[1]), "+f"(d[3].values[2]), "+f"(d[3].values[3]),
        "+f"(d[4].values[0]), "+f"(d[4].values[1]), "+f"(d[4].values[2]), "+f"(d[4].values[3]),
        "+f"(d[5].values[0]), "+f"(d[5].values[1]), "+f"(d[5].values[2]), "+f"(d[5].values[3]),
        "+f"(d[6].values[0]), "+f"(d[6].values[1]), "+f"(d[6].values[2]), "+f"(d[6].values[3]),
        "+f"(d[7].values[0]), "+f"(d[7].values[1]), "+f"(d[7].values[2]), "+f"(d[7].values[3]),
        "+f"(d[8].values[0]), "+f"(d[8].values[1]), "+f"(d[8].values[2]), "+f"(d[8].values[3]),
        "+f"(d[9].values[0]), "+f"(d[9].values[1]), "+f"(d[9].values[2]), "+f"(d[9].values[3]),
        "+f"(d[10].values[0]), "+f"(d[10].values[1]), "+f"(d[10].values[2]), "+f"(d[10].values[3]),
        "+f"(d[11].values[0]), "+f"(d[11].values[1]), "+f"(d[11].values[2]), "+f"(d[11].values[3]),
        "+f"(d[12].values[0]), "+f"(d[12].values[1]), "+f"(d[12].values[2]), "+f"(d[12].values[3]),
        "+f"(d[13].values[0]), "+f"(d[13].values[1]), "+f"(d[13].values[2]), "+f"(d[13].values[3]),
        "+f"(d[14].values[0]), "+f"(d[14].values[1]), "+f"(d[14].values[2]), "+f"(d[14].values[3]),
        "+f"(d[15].values[0]), "+f"(d[15].values[1]), "+f"(d[15].values[2]), "+f"(d[15].values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "l"(b), "r"(int(add)),
        "n"(int(kTransposed)));
}
template <bool kTransposed>
__device__ void wgmma(Accumulator (&d)[8], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred sum;\nsetp.ne.b32 sum, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, sum, 1, 1, 0, %35;\n}\n"
      : "+f"(d[0].values[0]), "+f"(d[0].values[1]), "+f"(d[0].values[2]), "+f"(d[0].values[3]),
        "+f"(d[1].values[0]), "+f"(d[1].values[1]), "+f"(d[1].values[2]), "+f"(d[1].values[3]),
        "+f"(d[2].values[0]), "+f"(d[2].values[1]), "+f"(d[2].values[2]), "+f"(d[2].values[3]),
        "+f"(d[3].values[0]), "+f"(d[3].values[1]), "+f"(d[3].values[2]), "+f"(d[3].values[3]),
        "+f"(d[4].values[0]), "+f"(d[4].values[1]), "+f"(d[4].values[2]), "+f"(d[4].values[3]),
        "+f"(d[5].values[0]), "+f"(d[5].values[1]), "+f"(d[5].values[2]), "+f"(d[5].values[3]),
        "+f"(d[6].values[0]), "+f"(d[6].values[1]), "+f"(d[6].values[2]), "+f"(d[6].values[3]),
        "+f"(d[7].values[0]), "+f"(d[7].values[1]), "+f"(d[7].values[2]), "+f"(d[7].values[3])
      : "l"(a), "l"(b), "r"(int(add)), "n"(int(kTransposed)));
}

// Registers written so far are visible to the products that follow.
template <class = void>
__device__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
template <class = void>
__device__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most kPending of the latest groups are running.
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Shared memory that this thread wrote, or copied, is seen by products after the next barrier.
template <class = void>
__device__ void fence_shared_for_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Keeps the compiler from moving uses of registers across this point.
template <int kTiles>
__device__ void pin(Accumulator (&tiles)[kTiles]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(tiles[n].values[i])::"memory");
  }
}
template <int kTiles>
__device__ void pin(FragmentA (&tiles)[kTiles]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(tiles[n].words[i])::"memory");
  }
}

}  // namespace sluice::cuda
