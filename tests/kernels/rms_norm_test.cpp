#include "kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

TEST(RmsNorm, HandComputed) {
  TestContext ctx;
  Tensor x({1, 2}, DType::f64), weight({2}, DType::f64), y({1, 2}, DType::f64),
      rstd({1}, DType::f64);
  x.fill({3, 4});
  weight.fill({2, 10});
  rms_norm_forward(ctx, {.x = x, .weight = weight, .y = y, .rstd = rstd, .eps = 0});
  const double root = std::sqrt(12.5);  // mean of 9 and 16
  EXPECT_NEAR(y.get(0), 2 * 3 / root, 1e-15);
  EXPECT_NEAR(y.get(1), 10 * 4 / root, 1e-15);
  EXPECT_NEAR(rstd.get(0), 1 / root, 1e-15);
}

// One forward and backward at a shape, in a dtype, with every optional argument present.
struct Case {
  Case(const Dims& dims, DType dtype, int64_t row_padding)
      : x(dims, dtype, row_padding),
        delta(dims, dtype),
        weight({dims.row_size()}, dtype),
        sum(dims, dtype),
        y(dims, dtype, row_padding),
        rstd({dims.rows()}, dtype),
        dy(dims, dtype),
        dsum(dims, dtype),
        dx(dims, dtype),
        dweight({dims.row_size()}, dtype) {
    x.fill_normal(1);
    delta.fill_normal(2);
    weight.fill_normal(3, 0.5, 1);
    dy.fill_normal(4);
    dsum.fill_normal(5);
    dweight.fill(0);
  }
  void forward() {
    rms_norm_forward(ctx,
                     {.x = x, .delta = delta, .weight = weight, .sum = sum, .y = y, .rstd = rstd});
  }
  void backward() {
    rms_norm_backward(ctx, {.dy = dy,
                            .sum = sum,
                            .weight = weight,
                            .rstd = rstd,
                            .dsum = dsum,
                            .dx = dx,
                            .dweight = dweight});
  }
  TestContext ctx;
  Tensor x, delta, weight, sum, y, rstd, dy, dsum, dx, dweight;
};

class RmsNormShapes : public testing::TestWithParam<Dims> {};

TEST_P(RmsNormShapes, GradientsMatchCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.forward();
  c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y, &c.sum}, {&c.dy, &c.dsum});
  };
  check_gradients(
      loss, {{"x", &c.x, &c.dx}, {"delta", &c.delta, &c.dx}, {"weight", &c.weight, &c.dweight}});
}

TEST_P(RmsNormShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32, 0), b(GetParam(), DType::f64, 0);
  a.forward(), a.backward();
  b.forward(), b.backward();
  const double bound = tolerance(DType::f32, GetParam().row_size());
  EXPECT_LE(relative_error(a.y, b.y), bound);
  EXPECT_LE(relative_error(a.dx, b.dx), bound);
  EXPECT_LE(relative_error(a.dweight, b.dweight), tolerance(DType::f32, GetParam().rows()));
}

TEST_P(RmsNormShapes, RerunsAreBitEqual) {
  Case a(GetParam(), DType::f32, 0), b(GetParam(), DType::f32, 0);
  a.forward(), a.backward();
  b.forward(), b.backward();
  EXPECT_TRUE(bit_equal(a.y, b.y) && bit_equal(a.dx, b.dx) && bit_equal(a.dweight, b.dweight));
}

INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormShapes,
                         testing::Values(Dims{1, 1}, Dims{7, 13}, Dims{2, 37, 64}, Dims{3, 1, 5}));

TEST(RmsNorm, WeightlessAndInPlace) {
  TestContext ctx;
  Tensor x = normal({5, 6}, DType::f64, 1);
  Tensor y({5, 6}, DType::f64), rstd({5}, DType::f64);
  rms_norm_forward(ctx, {.x = x, .y = y, .rstd = rstd});
  Tensor in_place = x.clone();
  rms_norm_forward(ctx, {.x = in_place, .y = in_place});
  EXPECT_TRUE(bit_equal(y, in_place));
  Tensor dy = normal({5, 6}, DType::f64, 2), dx({5, 6}, DType::f64);
  rms_norm_backward(ctx, {.dy = dy, .sum = x, .rstd = rstd, .dx = dx});
  check_gradients(
      [&] {
        rms_norm_forward(ctx, {.x = x, .y = y});
        return weighted_sum({&y}, {&dy});
      },
      {{"x", &x, &dx}});
}

TEST(RmsNorm, RefusesWrongShapes) {
  TestContext ctx;
  Tensor x = normal({2, 3}, DType::f32, 1), y({2, 4}, DType::f32);
  EXPECT_THROW(rms_norm_forward(ctx, {.x = x, .y = y}), Error);
}

}  // namespace
}  // namespace sluice::test
