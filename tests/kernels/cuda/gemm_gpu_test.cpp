#include "kernels/gemm/gemm.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

// Products of bf16 numbers are exact in f32: a result in f32 is as good as one of f32 operands.
constexpr GpuBounds kExactProducts{.f32 = 1e-5, .bf16 = 2e-5, .arena_bytes = size_t{40} << 20};
constexpr GpuBounds kRoundedResult{.arena_bytes = size_t{40} << 20};

struct GemmShape {
  int64_t m, n, k;
};
// Multiples of everything, of 8, odd, vectors, empty, and more than one tile.
constexpr GemmShape kShapes[] = {{128, 256, 64}, {64, 48, 96}, {37, 41, 29},  {1, 17, 5},
                                 {13, 1, 7},     {1, 1, 1},    {3, 5, 0},     {0, 4, 4},
                                 {4, 0, 4},      {300, 70, 1}, {77, 283, 61}, {520, 16, 1030}};

// c = 1.5 op(a) op(b) - 0.5 c + bias, rows `padding` elements apart.
void accumulate(Side& side, const GemmShape& s, bool transpose_a, bool transpose_b,
                bool into_statistics, int64_t padding, const ConstTensorView& bias = {}) {
  const std::string name = concat(s.m, "x", s.n, "x", s.k, transpose_a ? " A^T" : "",
                                  transpose_b ? " B^T" : "", " padding ", padding);
  const TensorView a = side.normal(transpose_a ? Dims{s.k, s.m} : Dims{s.m, s.k}, 1, 0, padding);
  const TensorView b = side.normal(transpose_b ? Dims{s.n, s.k} : Dims{s.k, s.n}, 1, 0, padding);
  const TensorView c = side.compare(name, into_statistics ? side.stat_normal({s.m, s.n})
                                                          : side.normal({s.m, s.n}, 1, 0, padding));
  gemm(side.ctx(), {.a = a,
                    .b = b,
                    .c = c,
                    .bias = bias,
                    .transpose_a = transpose_a,
                    .transpose_b = transpose_b,
                    .alpha = 1.5,
                    .beta = -0.5});
}

class GemmGpu : public testing::TestWithParam<int64_t> {};  // padding of rows

TEST_P(GemmGpu, AgreesWithCpu) {
  check_on_gpu(
      [&](Side& side) {
        for (const GemmShape& s : kShapes) {
          for (const int transposes : {0, 1, 2, 3})
            accumulate(side, s, transposes & 1, transposes & 2, false, GetParam());
        }
      },
      kRoundedResult);
}

TEST_P(GemmGpu, AccumulatesIntoStatistics) {
  check_on_gpu(
      [&](Side& side) {
        for (const GemmShape& s : kShapes) {
          accumulate(side, s, true, false, true, GetParam());
          accumulate(side, s, false, true, true, GetParam());
        }
      },
      kExactProducts);
}

// Results of either dtype, and biases whose pointers are aligned to 16 bytes and to an element.
TEST_P(GemmGpu, AddsTheBiasToEveryRow) {
  check_on_gpu(
      [&](Side& side) {
        for (const GemmShape& s : kShapes) {
          const TensorView bias = side.stat_normal({s.n + 1}, 2);
          for (const int64_t begin : {0, 1}) {
            const ConstTensorView part = bias.columns(begin, {s.n});
            accumulate(side, s, false, true, false, GetParam(), part);
            accumulate(side, s, false, true, true, GetParam(), part);
          }
        }
      },
      kRoundedResult);
}

INSTANTIATE_TEST_SUITE_P(Rows, GemmGpu, testing::Values(0, 3, 8));

// Linear layers as attention and Mamba have them: nothing of C is read.
TEST(GemmGpuEdges, OverwritesNaNWithABias) {
  check_on_gpu(
      [](Side& side) {
        for (const int64_t K : {0, 8, 300}) {
          gemm(side.ctx(), {.a = side.normal({70, K}),
                            .b = side.normal({96, K}),
                            .c = side.output(concat("K ", K), {70, 96}, side.dtype()),
                            .bias = side.stat_normal({96}),
                            .transpose_b = true});
        }
      },
      kRoundedResult);
}

TEST(GemmGpuEdges, OverwritesNaNWithoutBeta) {
  check_on_gpu(
      [](Side& side) {
        for (const int64_t K : {0, 4, 300}) {
          gemm(side.ctx(), {.a = side.normal({70, K}),
                            .b = side.normal({K, 90}),
                            .c = side.output(concat("K ", K), {70, 90}, side.dtype())});
        }
      },
      kRoundedResult);
}

// Columns of a wide projection: pointers aligned to an element alone.
TEST(GemmGpuEdges, TakesSlicesAtAnyColumn) {
  check_on_gpu(
      [](Side& side) {
        const TensorView wide = side.normal({50, 200});
        const TensorView result = side.compare("result", side.normal({50, 150}));
        for (const int64_t begin : {1, 2, 8})
          gemm(side.ctx(), {.a = wide.columns(begin, {96}),
                            .b = side.normal({96, 40}),
                            .c = result.columns(begin * 10 + 1, {40}),
                            .beta = 1});
      },
      kRoundedResult);
}

// The router of an expert layer, as layers/ffn has it: bf16 activations, weights and gradients of
// logits in f32. Nothing of the f32 operand is lost where the result is f32.
TEST(GemmGpuEdges, RouterLogitsAndGradientLoseNothing) {
  check_on_gpu(
      [](Side& side) {
        const TensorView x = side.normal({200, 96}), weight = side.stat_normal({6, 96});
        gemm(side.ctx(), {.a = x,
                          .b = weight,
                          .c = side.output("logits", {200, 6}, side.stat()),
                          .transpose_b = true});
        gemm(side.ctx(), {.a = side.stat_normal({200, 6}),
                          .b = x,
                          .c = side.compare("dweight", side.stat_normal({6, 96})),
                          .transpose_a = true,
                          .beta = 1});
      },
      kExactProducts);
}

// The f32 operand is either one, lies either way, and its terms are stacked either way.
TEST(GemmGpuEdges, ProductsOfTwoDtypes) {
  check_on_gpu(
      [](Side& side) {
        for (const int which : {0, 1, 2, 3, 4, 5, 6, 7}) {
          const bool a_is_f32 = which & 1, transpose_a = which & 2, transpose_b = which & 4;
          const auto operand = [&](const Dims& dims, bool f32) {
            return f32 ? side.stat_normal(dims, 1, 0, 3) : side.normal(dims, 1, 0, 3);
          };
          gemm(side.ctx(),
               {.a = operand(transpose_a ? Dims{70, 33} : Dims{33, 70}, a_is_f32),
                .b = operand(transpose_b ? Dims{19, 70} : Dims{70, 19}, !a_is_f32),
                .c = side.compare(concat("c ", which), side.stat_normal({33, 19}, 1, 0, 2)),
                .bias = side.stat_normal({19}),
                .transpose_a = transpose_a,
                .transpose_b = transpose_b,
                .alpha = 1.5,
                .beta = -0.5});
        }
      },
      kExactProducts);
}

// Short and longer inner dimensions; rows in packs of 16 bytes and not; several tiles a block.
TEST(GemmGpuEdges, RouterGradientGoesToActivations) {
  struct Shape {
    int64_t tokens, experts, columns, padding;
  };
  check_on_gpu(
      [](Side& side) {
        for (const Shape& s : {Shape{200, 6, 96, 0}, Shape{3, 1, 9, 0}, Shape{37, 16, 1096, 8},
                               Shape{33, 17, 520, 0}, Shape{50, 40, 71, 0}, Shape{19, 64, 72, 3},
                               Shape{21, 65, 72, 0}, Shape{9000, 16, 40, 0}}) {
          for (const double beta : {1.0, 0.0}) {
            const std::string name = concat(s.tokens, "x", s.experts, "x", s.columns, " ", beta);
            const Dims dims{s.tokens, s.columns};
            gemm(side.ctx(),
                 {.a = side.stat_normal({s.tokens, s.experts}, 1, 0, s.padding),
                  .b = side.stat_normal({s.experts, s.columns}, 1, 0, s.padding),
                  .c = beta == 0 ? side.output(name, dims, side.dtype(), s.padding)
                                 : side.compare(name, side.normal(dims, 1, 0, s.padding)),
                  .alpha = 0.75,
                  .beta = beta});
          }
        }
      },
      kRoundedResult);
}

// Large products of rows that begin at 16 bytes and end elsewhere are cut into whole packs and a
// rest. All orientations, into either dtype, with a bias or onto what is there.
TEST(GemmGpuEdges, CutsRowsThatEndWithinAPack) {
  constexpr GemmShape kShape{1030, 1037, 1029};
  static_assert(kShape.m * kShape.n * kShape.k > int64_t{1} << 30);
  const auto to_packs = [](int64_t size) { return (8 - size % 8) % 8; };
  check_on_gpu(
      [&](Side& side) {
        const auto padded = [&](int64_t rows, int64_t columns) {
          return side.normal({rows, columns}, 1, 0, to_packs(columns));
        };
        const auto [m, n, k] = kShape;
        for (const int which : {0, 1, 2, 3}) {
          const bool transpose_a = which & 1, transpose_b = which & 2;
          const TensorView a = transpose_a ? padded(k, m) : padded(m, k);
          const TensorView b = transpose_b ? padded(n, k) : padded(k, n);
          gemm(side.ctx(),
               {.a = a,
                .b = b,
                .c = side.output(concat("c ", which), {m, n}, side.dtype(), to_packs(n)),
                .bias = side.stat_normal({n}),
                .transpose_a = transpose_a,
                .transpose_b = transpose_b});
          gemm(side.ctx(), {.a = a,
                            .b = b,
                            .c = side.compare(concat("sum ", which),
                                              side.stat_normal({m, n}, 1, 0, to_packs(n))),
                            .transpose_a = transpose_a,
                            .transpose_b = transpose_b,
                            .alpha = 1.5,
                            .beta = -0.5});
        }
      },
      kRoundedResult);
}

// Projections of Mamba-2 130M: forward, data and weight gradient.
TEST(GemmGpuEdges, Projection) {
  check_on_gpu(
      [](Side& side) {
        const TensorView x = side.normal({96, 768}), w = side.normal({3352, 768}, 0.05);
        const TensorView y = side.output("y", {96, 3352}, side.dtype());
        gemm(side.ctx(), {.a = x, .b = w, .c = y, .transpose_b = true});
        const TensorView dy = side.normal({96, 3352});
        gemm(side.ctx(), {.a = dy, .b = w, .c = side.output("dx", {96, 768}, side.dtype())});
        gemm(side.ctx(), {.a = dy,
                          .b = x,
                          .c = side.compare("dw", side.stat_normal({3352, 768})),
                          .transpose_a = true,
                          .beta = 1});
      },
      kRoundedResult);
}

}  // namespace
}  // namespace sluice::test
