#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include "kernels/core/threads.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/blas.h"
#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

TEST(Gemm, HandComputed) {
  TestContext ctx;
  Tensor a({2, 3}, DType::f64), b({3, 2}, DType::f64), c({2, 2}, DType::f64);
  a.fill({1, 2, 3, 4, 5, 6});
  b.fill({1, 0, 0, 1, 2, -1});
  gemm(ctx, {.a = a, .b = b, .c = c});
  EXPECT_EQ(c.values(), (std::vector<double>{7, -1, 16, -1}));
  gemm(ctx, {.a = a, .b = b, .c = c, .alpha = 10, .beta = 3});
  EXPECT_EQ(c.values(), (std::vector<double>{91, -13, 208, -13}));
}

struct GemmShape {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
};
std::ostream& operator<<(std::ostream& out, const GemmShape& s) {
  return out << s.m << "x" << s.n << "x" << s.k << (s.transpose_a ? " A^T" : " A")
             << (s.transpose_b ? " B^T" : " B");
}

// C = 1.5 op(A) op(B) - 0.5 C + bias by three loops in double.
Tensor plain_product(const GemmShape& s, const Tensor& a, const Tensor& b, const Tensor& c,
                     const Tensor& bias) {
  Tensor expected({s.m, s.n}, DType::f64);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < s.k; ++k) {
        sum += a.get(s.transpose_a ? k * s.m + i : i * s.k + k) *
               b.get(s.transpose_b ? j * s.k + k : k * s.n + j);
      }
      expected.set(i * s.n + j, 1.5 * sum - 0.5 * c.get(i * s.n + j) + bias.get(j));
    }
  }
  return expected;
}

class GemmShapes : public testing::TestWithParam<GemmShape> {};

TEST_P(GemmShapes, AgreesWithPlainLoopsOnStridedRows) {
  const GemmShape s = GetParam();
  TestContext ctx;
  for (const DType dtype : {DType::f64, DType::f32}) {
    Tensor a(s.transpose_a ? Dims{s.k, s.m} : Dims{s.m, s.k}, dtype, 5);
    Tensor b(s.transpose_b ? Dims{s.n, s.k} : Dims{s.k, s.n}, dtype, 3);
    Tensor c({s.m, s.n}, dtype, 7);
    a.fill_normal(1), b.fill_normal(2), c.fill_normal(3);
    const Tensor before = c.clone();
    for (const bool biased : {false, true}) {
      const Tensor bias = biased ? normal({s.n}, dtype, 4) : zeros({s.n}, dtype);
      const Tensor expected = plain_product(s, a, b, before, bias);
      copy(ctx, before, c);
      gemm(ctx, {.a = a,
                 .b = b,
                 .c = c,
                 .bias = biased ? bias.view() : ConstTensorView{},
                 .transpose_a = s.transpose_a,
                 .transpose_b = s.transpose_b,
                 .alpha = 1.5,
                 .beta = -0.5});
      EXPECT_LE(relative_error(c, expected), tolerance(dtype, s.k)) << name_of(dtype) << biased;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GemmShapes,
    testing::Values(GemmShape{1, 1, 1, false, false}, GemmShape{1, 17, 5, false, true},
                    GemmShape{13, 1, 7, true, false}, GemmShape{37, 41, 29, true, true},
                    GemmShape{64, 48, 96, false, true}, GemmShape{3, 5, 0, false, false},
                    GemmShape{0, 4, 4, false, true}, GemmShape{4, 0, 4, true, false},
                    GemmShape{701, 523, 23, false, true},    // tiled
                    GemmShape{1031, 1024, 7, true, false},   // tiled
                    GemmShape{1543, 80, 51, false, true},    // narrow, and tiled
                    GemmShape{77, 1283, 61, true, false}));  // narrow, and tiled

TEST(Gemm, BetaZeroOverwritesNaN) {
  TestContext ctx;
  for (const int64_t K : {0, 4, 300}) {
    Tensor a = normal({70, K}, DType::f32, 1), b = normal({K, 90}, DType::f32, 2);
    Tensor c({70, 90}, DType::f32);  // NaN
    gemm(ctx, {.a = a, .b = b, .c = c});
    for (int64_t i = 0; i < c.numel(); ++i) {
      ASSERT_TRUE(std::isfinite(c.get(i)));
      ASSERT_TRUE(K > 0 || c.get(i) == 0);
    }
  }
}

// Broad and narrow outputs, as linear layers and their weight gradients have them.
TEST(Gemm, BitsDoNotDependOnTheThreadCount) {
  TestContext ctx;
  const int before = num_threads();
  for (const GemmShape s :
       {GemmShape{640, 1100, 300, false, true}, GemmShape{1100, 700, 640, true, false},
        GemmShape{2048, 80, 192, false, true}, GemmShape{80, 1536, 256, true, false},
        GemmShape{256, 768, 1000, false, false}}) {
    const Tensor a = normal(s.transpose_a ? Dims{s.k, s.m} : Dims{s.m, s.k}, DType::f32, 1);
    const Tensor b = normal(s.transpose_b ? Dims{s.n, s.k} : Dims{s.k, s.n}, DType::f32, 2);
    Tensor results[3];
    const int threads[] = {1, 2, 5};
    for (int run = 0; run < 3; ++run) {
      results[run] = Tensor({s.m, s.n}, DType::f32);
      set_num_threads(threads[run]);
      gemm(ctx, {.a = a,
                 .b = b,
                 .c = results[run],
                 .transpose_a = s.transpose_a,
                 .transpose_b = s.transpose_b});
      EXPECT_EQ(num_threads(), threads[run]) << "the caller's pool was changed";
    }
    EXPECT_TRUE(bit_equal(results[0], results[1])) << s;
    EXPECT_TRUE(bit_equal(results[0], results[2])) << s;
  }
  set_num_threads(before);
}

TEST(Gemm, TileIsTheSameInsideAndOutsideAParallelRegion) {
  const int before = num_threads();
  set_num_threads(2);
  const int64_t m = 256, n = 200, k = 150;
  Tensor a = normal({m, k}, DType::f32, 1), b = normal({n, k}, DType::f32, 2);
  Tensor outside({m, n}, DType::f32), inside({m, n}, DType::f32);
  const auto product = [&](const Tensor& c) {
    cpu::tile_gemm(false, true, m, n, k, 1.0f, a.view().as<float>(), k, b.view().as<float>(), k,
                   0.0f, c.view().as<float>(), n);
  };
  product(outside);
  EXPECT_EQ(num_threads(), 2);
#pragma omp parallel for schedule(static)
  for (int task = 0; task < 1; ++task) product(inside);
  EXPECT_TRUE(bit_equal(outside, inside));
  set_num_threads(before);
}

// Group e of the plain gemm, for groups of 3, 0, 40 and 1 rows of 50.
TEST(GroupedGemm, AgreesWithOneGemmPerGroup) {
  const int64_t X = 4, rows = 50, K = 23, N = 31;
  for (const bool transpose : {false, true}) {
    for (const double beta : {0.0, 1.0}) {
      TestContext ctx;
      Tensor offsets({X + 1}, DType::i64);
      offsets.fill({0, 3, 3, 43, 44});
      Tensor a = normal({rows, K}, DType::f64, 1);
      Tensor weights = normal(transpose ? Dims{X, N, K} : Dims{X, K, N}, DType::f64, 2);
      Tensor c = normal({rows, N}, DType::f64, 3), expected = c.clone();
      grouped_gemm(ctx, {.a = a,
                         .weights = weights,
                         .c = c,
                         .offsets = offsets,
                         .transpose_weights = transpose,
                         .beta = beta});
      for (int64_t e = 0; e < X; ++e) {
        const int64_t begin = int64_t(offsets.get(e)), count = int64_t(offsets.get(e + 1)) - begin;
        gemm(ctx, {.a = a.view().row_range(begin, count),
                   .b = weights.view().slice(e),
                   .c = expected.view().row_range(begin, count),
                   .transpose_b = transpose,
                   .beta = beta});
      }
      EXPECT_LE(relative_error(c, expected), tolerance(DType::f64, K));
      for (int64_t i = 44 * N; i < rows * N; ++i) EXPECT_EQ(c.get(i), expected.get(i));
    }
  }
}

// Rows of a weight gradient: groups of 13, 0 and 7 rows of 21.
struct GroupedRows {
  static constexpr int64_t X = 3, rows = 21, M = 7, N = 9;
  TestContext ctx;
  Tensor a = normal({rows, M}, DType::f64, 1), b = normal({rows, N}, DType::f64, 2);
  Tensor offsets{{X + 1}, DType::i64};

  GroupedRows() { offsets.fill({0, 13, 13, 20}); }
  void gradient(Tensor& weights, double beta) {
    grouped_gemm_weight(ctx,
                        {.a = a, .b = b, .weights = weights, .offsets = offsets, .beta = beta});
  }
};

TEST(GroupedGemm, WeightGradientOverwritesEveryGroup) {
  GroupedRows in;
  const Dims dims{in.X, in.M, in.N};
  Tensor weights(dims, DType::f64), expected(dims, DType::f64);  // weights: NaN
  expected.fill(0);
  in.gradient(weights, 0), in.gradient(expected, 1);
  EXPECT_EQ(weights.values(), expected.values());
}

TEST(GroupedGemm, WeightGradientAccumulatesPerGroup) {
  GroupedRows in;
  const int64_t M = in.M, N = in.N;
  Tensor weights = normal({in.X, M, N}, DType::f64, 3), expected = weights.clone();
  in.gradient(weights, 1);
  for (int64_t e = 0; e < in.X; ++e) {
    for (int64_t row = int64_t(in.offsets.get(e)); row < int64_t(in.offsets.get(e + 1)); ++row) {
      for (int64_t i = 0; i < M * N; ++i) {
        const double product = in.a.get(row * M + i / N) * in.b.get(row * N + i % N);
        expected.set(e * M * N + i, expected.get(e * M * N + i) + product);
      }
    }
  }
  EXPECT_LE(relative_error(weights, expected), tolerance(DType::f64, in.rows));
  for (int64_t i = M * N; i < 2 * M * N; ++i) EXPECT_EQ(weights.get(i), expected.get(i));
}

TEST(Gemm, RefusesWhatDoesNotFit) {
  TestContext ctx;
  Tensor a = normal({3, 4}, DType::f32, 1), b = normal({5, 6}, DType::f32, 2);
  Tensor c({3, 6}, DType::f32), c64({3, 6}, DType::f64);
  EXPECT_THROW(gemm(ctx, {.a = a, .b = b, .c = c}), Error);
  Tensor square = normal({4, 6}, DType::f32, 3);
  EXPECT_THROW(gemm(ctx, {.a = a, .b = square, .c = c64}), Error);
  EXPECT_THROW(gemm(ctx, {.a = a, .b = square, .c = c, .transpose_a = true}), Error);
  EXPECT_NO_THROW(gemm(ctx, {.a = a, .b = square, .c = c}));

  Tensor weights = normal({2, 4, 6}, DType::f32, 4), offsets({3}, DType::i64);
  for (const std::vector<double>& wrong :
       {std::vector<double>{1, 2, 3}, std::vector<double>{0, 2, 1}, std::vector<double>{0, 2, 4}}) {
    offsets.fill(wrong);
    EXPECT_THROW(grouped_gemm(ctx, {.a = a, .weights = weights, .c = c, .offsets = offsets}),
                 Error);
  }
}

}  // namespace
}  // namespace sluice::test
