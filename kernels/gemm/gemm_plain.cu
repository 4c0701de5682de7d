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
                                   .beta = float(args.beta),
                                   .bias = optional_pointer<C>(args.bias)};
  const int64_t row_tiles = ceil_div(M, PlainTile::kSize);
  launch(ctx, "gemm",
         {.blocks = unsigned(row_tiles * ceil_div(N, PlainTile::kSize)),
          .threads = PlainTile::kThreads},
         gemm_plain_kernel<T, C>, product, row_tiles);
}

// Elements of a matrix, and where those of its terms are.
struct Stacked {
  int64_t columns, count;
  int64_t stride, terms_stride, term_step;

  Stacked(const ConstTensorView& matrix, const ConstTensorView& terms, Stack stack)
      : columns(matrix.row_size()),
        count(matrix.numel()),
        stride(matrix.row_stride),
        terms_stride(terms.row_stride),
        term_step(stack == Stack::below ? matrix.rows() * terms.row_stride : columns) {}

  // body(index in the matrix, index of its first term, column) for this thread's share.
  template <class Body>
  __device__ void for_each(const Body& body) const {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
      const int64_t row = i / columns, column = i - row * columns;
      body(row * stride + column, row * terms_stride + column, column);
    }
  }
  Grid grid() const {
    constexpr int64_t kThreads = 256, kMaxBlocks = 132 * 8;
    return {.blocks = unsigned(std::min(ceil_div(count, kThreads), kMaxBlocks)),
            .threads = unsigned(kThreads)};
  }
};

// The first term is x rounded; what it misses is exact in f32, and so on.
__global__ void split_kernel(Stacked elements, const float* x, int64_t num_terms, Bf16* terms) {
  elements.for_each([&](int64_t at, int64_t first, int64_t /*column*/) {
    float left = x[at];
    for (int64_t term = 0; term < num_terms; ++term) {
      const Bf16 rounded = from_float<Bf16>(left);
      terms[first + term * elements.term_step] = rounded;
      left -= to_float(rounded);
    }
  });
}

__global__ void add_stacked_kernel(Stacked elements, const float* sums, float beta,
                                   const float* bias, float* c) {
  elements.for_each([&](int64_t at, int64_t first, int64_t column) {
    float sum = 0;
#pragma unroll
    for (int64_t term = 0; term < kBf16Terms; ++term)
      sum += sums[first + term * elements.term_step];
    if (bias) sum += bias[column];
    c[at] = beta == 0 ? sum : fmaf(beta, c[at], sum);
  });
}

}  // namespace

void gemm_plain(const Context& ctx, const Gemm& args) {
  if (args.a.dtype == DType::f32) return gemm_plain_of<float, float>(ctx, args);
  if (args.c.dtype == DType::f32) return gemm_plain_of<Bf16, float>(ctx, args);
  gemm_plain_of<Bf16, Bf16>(ctx, args);
}

void split_into_bf16(const Context& ctx, const ConstTensorView& x, Stack stack,
                     const TensorView& terms) {
  if (x.numel() == 0) return;
  const Stacked elements(x, terms, stack);
  launch(ctx, "gemm", elements.grid(), split_kernel, elements, x.as<float>(),
         terms.numel() / x.numel(), pointer<Bf16>(terms));
}

void add_stacked(const Context& ctx, const ConstTensorView& sums, Stack stack, double beta,
                 const ConstTensorView& bias, const TensorView& c) {
  const Stacked elements(c, sums, stack);
  launch(ctx, "gemm", elements.grid(), add_stacked_kernel, elements, sums.as<float>(), float(beta),
         optional_pointer<float>(bias), c.as<float>());
}

}  // namespace sluice::cuda
