// Sums of squares on the GPU, bound by bandwidth: 4 bytes an element are read. One block of threads
// takes one block of elements. Squares and sums are double, as 0.5 G elements of double arithmetic
// hide behind their bytes.
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/grad_norm/grad_norm_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWidth = Pack<float>::kWidth;
constexpr int kPacks = int(kNormBlock) / (kThreads * kWidth);  // a thread
static_assert(kPacks * kThreads * kWidth == kNormBlock);

// Which thread sums which elements depends neither on n nor on kAligned: a block of a shard has the
// bits of the same block of the whole.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    block_squares_kernel(const float* x, int64_t n, double* sums) {
  __shared__ double room[kThreads / kWarp];
  const int64_t first = blockIdx.x * int64_t{kNormBlock} + threadIdx.x * kWidth;
  Pack<float> packs[kPacks];
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int64_t at = first + pack * kThreads * kWidth;
    if (kAligned && at + kWidth <= n) {
      packs[pack] = Pack<float>::load(x + at);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) packs[pack].values[i] = at + i < n ? x[at + i] : 0.0f;
  }
  double sum = 0;
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
#pragma unroll
    for (const float value : packs[pack].values) sum += double(value) * double(value);
  }
  sum = block_sum<kThreads>(sum, room);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

void block_squares(const Context& ctx, const BlockSquares& args) {
  const float* const x = args.x.as<float>();
  const bool aligned = reinterpret_cast<uintptr_t>(x) % sizeof(Pack<float>) == 0;
  launch(ctx, "block_squares", {.blocks = unsigned(args.sums.numel()), .threads = kThreads},
         aligned ? block_squares_kernel<true> : block_squares_kernel<false>, x, args.x.numel(),
         args.sums.as<double>());
}

}  // namespace sluice::cuda
