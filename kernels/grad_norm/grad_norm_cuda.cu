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

// Block b sums its range of places, thread after thread.
__global__ void __launch_bounds__(kThreads)
    sum_places_kernel(const double* values, const int64_t* places, int64_t count, double* partial) {
  __shared__ double room[kThreads / kWarp];
  double sum = 0;
  const int64_t begin = blockIdx.x * kPlacesOfPartial;
  const int64_t end = begin + kPlacesOfPartial < count ? begin + kPlacesOfPartial : count;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) sum += values[places[i]];
  sum = block_sum<kThreads>(sum, room);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One warp.
__global__ void sum_partials_kernel(const double* partial, int64_t count, double* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWarp) sum += partial[i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

struct Clipping {
  const double* squares;
  int64_t n;
  const double* loss;
  double clip;
  double* norm;
  double* grad_scale;
  double* apply;
};

// One thread: squares are as many as there are groups of parameters.
__global__ void clip_gradient_kernel(Clipping a) {
  double squared = 0;
  for (int64_t i = 0; i < a.n; ++i) squared += a.squares[i];
  const double norm = sqrt(squared);
  *a.norm = norm;
  *a.grad_scale = a.clip > 0 && norm > a.clip ? a.clip / norm : 1;
  *a.apply = isfinite(norm) && isfinite(*a.loss) ? 1 : 0;
}

}  // namespace

void block_squares(const Context& ctx, const BlockSquares& args) {
  const float* const x = args.x.as<float>();
  const bool aligned = reinterpret_cast<uintptr_t>(x) % sizeof(Pack<float>) == 0;
  launch(ctx, "block_squares", {.blocks = unsigned(args.sums.numel()), .threads = kThreads},
         aligned ? block_squares_kernel<true> : block_squares_kernel<false>, x, args.x.numel(),
         args.sums.as<double>());
}

void ordered_sum(const Context& ctx, const OrderedSum& args, TensorView partial) {
  launch(ctx, "ordered_sum", {.blocks = unsigned(partial.numel()), .threads = kThreads},
         sum_places_kernel, args.values.as<double>(), args.places.as<int64_t>(),
         args.places.numel(), partial.as<double>());
  launch(ctx, "ordered_sum", {.blocks = 1, .threads = kWarp}, sum_partials_kernel,
         partial.as<double>(), partial.numel(), args.sum.as<double>());
}

void clip_gradient(const Context& ctx, const ClipGradient& args) {
  launch(ctx, "clip_gradient", {.blocks = 1, .threads = 1}, clip_gradient_kernel,
         Clipping{.squares = args.squares.as<double>(),
                  .n = args.squares.numel(),
                  .loss = args.loss.as<double>(),
                  .clip = args.clip,
                  .norm = args.norm.as<double>(),
                  .grad_scale = args.grad_scale.as<double>(),
                  .apply = args.apply.as<double>()});
}

}  // namespace sluice::cuda
