#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/gemm/gemm_cuda.h"
#include "kernels/gemm/gemm_plain.cuh"

namespace sluice::cuda {

namespace {

template <class T, class C>
__global__ void __launch_bounds__(PlainTile::kThreads)
    gemm_plain_kernel(PlainProduct<T, C> product, int64_t row_tiles) {
  __shared__ PlainTile tile;
  tile.compute(product, blockIdx.x % row_tiles * PlainTile::kSize,
               blockIdx.x / row_tiles * PlainTile::kSize);
}

template <class T, class C>
void gemm_plain_of(const Context& ctx, const Gemm& args) {
  const int64_t M = args.c.dim(0), N = args.c.dim(1);
  const PlainProduct<T, C> product{.a = pointer<T>(args.a),
                                   .a_row = args.transpose_a ? 1 : args.a.row_stride,
                                   .a_column = args.transpose_a ? args.a.row_stride : 1,
                                   .b = pointer<T>(args.b),
                                   .b_row = args.transpose_b ? 1 : args.b.row_stride,
                                   .b_column = args.transpose_b ? args.b.row_stride : 1,
                                   .c = pointer<C>(args.c),
                                   .c_row = args.c.row_stride,
                                   .M = M,
                                   .N = N,
                                   .K = args.a.dim(args.transpose_a ? 0 : 1),
                                   .alpha = float(args.alpha),
                                   .beta = float(args.beta)};
  const int64_t row_tiles = ceil_div(M, PlainTile::kSize);
  launch(ctx, "gemm",
         {.blocks = unsigned(row_tiles * ceil_div(N, PlainTile::kSize)),
          .threads = PlainTile::kThreads},
         gemm_plain_kernel<T, C>, product, row_tiles);
}

// The first term is x rounded; what it misses is exact in f32, and so on.
__global__ void split_kernel(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                             int64_t count, Bf16* terms, int64_t terms_stride) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns; i += step) {
    const int64_t row = i / columns, column = i - row * columns;
    float left = x[row * x_stride + column];
    for (int64_t term = 0; term < count; ++term) {
      const Bf16 rounded = from_float<Bf16>(left);
      terms[(term * rows + row) * terms_stride + column] = rounded;
      left -= to_float(rounded);
    }
  }
}

}  // namespace

void gemm_plain(const Context& ctx, const Gemm& args) {
  if (args.a.dtype == DType::f32) return gemm_plain_of<float, float>(ctx, args);
  if (args.c.dtype == DType::f32) return gemm_plain_of<Bf16, float>(ctx, args);
  gemm_plain_of<Bf16, Bf16>(ctx, args);
}

void split_into_bf16(const Context& ctx, const ConstTensorView& x, int64_t count,
                     const TensorView& terms) {
  constexpr int kThreads = 256;
  constexpr int64_t kMaxBlocks = 132 * 8;
  const int64_t blocks = std::min(ceil_div(x.numel(), kThreads), kMaxBlocks);
  launch(ctx, "gemm", {.blocks = unsigned(blocks), .threads = kThreads}, split_kernel,
         x.as<float>(), x.row_stride, x.rows(), x.row_size(), count, pointer<Bf16>(terms),
         terms.row_stride);
}

}  // namespace sluice::cuda
