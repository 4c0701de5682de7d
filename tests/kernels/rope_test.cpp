#include "kernels/rope/rope.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

TEST(Rope, HandComputed) {
  // theta = 4, R = 4: frequencies 1 and 1/2; columns pair as (0, 2) and (1, 3); column 4 passes.
  TestContext ctx;
  Tensor x({1, 1, 1, 5}, DType::f64), positions({1, 1}, DType::i32);
  x.fill({1, 2, 3, 4, 5}), positions.fill(3);
  rope_forward(ctx, {.x = x, .positions = positions, .rotary_dims = 4, .theta = 4});
  EXPECT_NEAR(x.get(0), std::cos(3.0) - 3 * std::sin(3.0), 1e-14);
  EXPECT_NEAR(x.get(1), 2 * std::cos(1.5) - 4 * std::sin(1.5), 1e-14);
  EXPECT_NEAR(x.get(2), 3 * std::cos(3.0) + std::sin(3.0), 1e-14);
  EXPECT_NEAR(x.get(3), 4 * std::cos(1.5) + 2 * std::sin(1.5), 1e-14);
  EXPECT_EQ(x.get(4), 5);
}

struct RopeShape {
  int64_t B, T, heads, head_dim, rotary_dims;
};

// Positions restart twice a row, as packed documents make them.
Tensor resetting_positions(int64_t B, int64_t T) {
  Tensor positions({B, T}, DType::i32);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < T; ++t) {
      const int64_t start = t >= T - b - 1 ? T - b - 1 : (t >= T / 3 ? T / 3 : -40);
      positions.set(b * T + t, double(t - start));
    }
  }
  return positions;
}

class RopeShapes : public testing::TestWithParam<RopeShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, RopeShapes,
                         testing::Values(RopeShape{1, 1, 1, 1, 0}, RopeShape{1, 1, 1, 2, 2},
                                         RopeShape{2, 7, 3, 8, 8}, RopeShape{2, 13, 2, 11, 6},
                                         RopeShape{1, 5, 1, 64, 32}));

TEST_P(RopeShapes, GradientsMatchCentralDifferences) {
  const auto [B, T, heads, head_dim, rotary_dims] = GetParam();
  TestContext ctx;
  const Tensor positions = resetting_positions(B, T);
  Tensor x({B, T, heads, head_dim}, DType::f64, 3), dx(x.dims(), DType::f64, 5);
  x.fill_normal(1), dx.fill_normal(2);
  const Tensor dy = dx.clone();
  const int64_t R = rotary_dims;
  rope_backward(ctx, {.x = dx, .positions = positions, .rotary_dims = R});
  const auto loss = [&] {
    Tensor y = x.clone();
    rope_forward(ctx, {.x = y, .positions = positions, .rotary_dims = R});
    return weighted_sum({&y}, {&dy});
  };
  check_gradients(loss, {{"x", &x, &dx}});
}

TEST_P(RopeShapes, FloatAgreesWithDoubleAndReruns) {
  const auto [B, T, heads, head_dim, rotary_dims] = GetParam();
  TestContext ctx;
  const Tensor positions = resetting_positions(B, T);
  const int64_t R = rotary_dims;
  const auto run = [&](DType dtype, int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    Tensor x = normal({B, T, heads, head_dim}, dtype, 1);
    rope_forward(ctx, {.x = x, .positions = positions, .rotary_dims = R});
    omp_set_num_threads(before);
    return x;
  };
  const Tensor a = run(DType::f32, 1), b = run(DType::f32, 2), wide = run(DType::f64, 2);
  EXPECT_TRUE(bit_equal(a, b));
  EXPECT_LE(relative_error(a, wide), tolerance(DType::f32));
}

TEST(Rope, ScoresDependOnDistanceAlone) {
  // q at position i against k at position j gives the same product for every i - j.
  TestContext ctx;
  const Tensor content = normal({1, 2, 1, 16}, DType::f64, 3);
  const auto score = [&](int i, int j) {
    Tensor pair = content.clone(), positions({1, 2}, DType::i32);
    positions.fill({double(i), double(j)});
    rope_forward(ctx, {.x = pair, .positions = positions, .rotary_dims = 12});
    double sum = 0;
    for (int64_t n = 0; n < 16; ++n) sum += pair.get(n) * pair.get(16 + n);
    return sum;
  };
  EXPECT_NEAR(score(5, 2), score(1003, 1000), 1e-10);
  EXPECT_GT(std::fabs(score(5, 2) - score(5, 3)), 1e-3);
}

TEST(Rope, RefusesWrongShapes) {
  TestContext ctx;
  Tensor x = normal({2, 3, 1, 8}, DType::f32, 1), positions = zeros({2, 3}, DType::i32);
  const Tensor short_positions = zeros({2, 2}, DType::i32);
  EXPECT_THROW(rope_forward(ctx, {.x = x, .positions = positions, .rotary_dims = 3}), Error);
  EXPECT_THROW(rope_forward(ctx, {.x = x, .positions = positions, .rotary_dims = 10}), Error);
  EXPECT_THROW(rope_forward(ctx, {.x = x, .positions = short_positions, .rotary_dims = 8}), Error);
}

}  // namespace
}  // namespace sluice::test
