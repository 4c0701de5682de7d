#include "kernels/gated_rms_norm/gated_rms_norm.h"

#include <gtest/gtest.h>

#include "kernels/core/threads.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/rms_norm/rms_norm.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

TEST(GatedRmsNorm, HandComputedInTwoGroups) {
  TestContext ctx;
  Tensor x({1, 4}, DType::f64), z({1, 4}, DType::f64), weight({4}, DType::f64);
  Tensor y({1, 4}, DType::f64);
  x.fill({3, 4, 6, 8});
  z.fill({1, 1, -2, -2});
  weight.fill({2, 10, 1, -1});
  const double up = 1 / (1 + std::exp(-1)), down = -2 / (1 + std::exp(2));  // silu
  const double root = std::sqrt(12.5);                                      // of 3 and 4
  gated_rms_norm_forward(ctx, {.x = x, .z = z, .weight = weight, .y = y, .groups = 2, .eps = 0});
  // One gate a group, which the norm divides out again but for its sign.
  const double before[] = {2 * 3 / root, 10 * 4 / root, -3 / root, 4 / root};
  for (int64_t i = 0; i < 4; ++i) EXPECT_NEAR(y.get(i), before[i], 1e-14);
  gated_rms_norm_forward(
      ctx,
      {.x = x, .z = z, .weight = weight, .y = y, .groups = 2, .gate = GateOrder::after, .eps = 0});
  const double after[] = {up * 2 * 3 / root, up * 10 * 4 / root, down * 3 / root, -down * 4 / root};
  for (int64_t i = 0; i < 4; ++i) EXPECT_NEAR(y.get(i), after[i], 1e-14);
}

struct GatedShape {
  Dims dims;
  int64_t groups;
  GateOrder gate;
};
std::ostream& operator<<(std::ostream& out, const GatedShape& s) {
  return out << to_string(s.dims) << " groups " << s.groups << " gate "
             << enum_names(s.gate)[size_t(s.gate)];
}

struct Case {
  Case(const GatedShape& s, DType dtype, int64_t padding)
      : shape(s),
        x(s.dims, dtype, padding),
        z(s.dims, dtype, 2 * padding),
        weight({s.dims.row_size()}, dtype),
        y(s.dims, dtype, padding),
        dy(s.dims, dtype),
        dx(s.dims, dtype, padding),
        dz(s.dims, dtype, padding),
        dweight(zeros({s.dims.row_size()}, dtype)) {
    x.fill_normal(1), z.fill_normal(2, 2), weight.fill_normal(3, 0.5, 1), dy.fill_normal(4);
  }
  void forward() {
    gated_rms_norm_forward(
        ctx,
        {.x = x, .z = z, .weight = weight, .y = y, .groups = shape.groups, .gate = shape.gate});
  }
  void backward() {
    gated_rms_norm_backward(ctx, {.dy = dy,
                                  .x = x,
                                  .z = z,
                                  .weight = weight,
                                  .dx = dx,
                                  .dz = dz,
                                  .dweight = dweight,
                                  .groups = shape.groups,
                                  .gate = shape.gate});
  }
  GatedShape shape;
  TestContext ctx;
  Tensor x, z, weight, y, dy, dx, dz, dweight;
};

class GatedShapes : public testing::TestWithParam<GatedShape> {};

TEST_P(GatedShapes, GradientsMatchCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y}, {&c.dy});
  };
  check_gradients(loss, {{"x", &c.x, &c.dx}, {"z", &c.z, &c.dz}, {"weight", &c.weight, &c.dweight}},
                  kGradientCheck, 100);
}

TEST_P(GatedShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32, 5), b(GetParam(), DType::f64, 0);
  a.forward(), a.backward();
  b.forward(), b.backward();
  const double bound = tolerance(DType::f32, GetParam().dims.row_size());
  EXPECT_LE(relative_error(a.y, b.y), bound);
  EXPECT_LE(relative_error(a.dx, b.dx), bound);
  EXPECT_LE(relative_error(a.dz, b.dz), bound);
  EXPECT_LE(relative_error(a.dweight, b.dweight), tolerance(DType::f32, GetParam().dims.rows()));
}

TEST_P(GatedShapes, BitsDoNotDependOnRunOrThreads) {
  const int before = num_threads();
  Case runs[] = {
      {GetParam(), DType::f32, 0}, {GetParam(), DType::f32, 0}, {GetParam(), DType::f32, 0}};
  const int threads[] = {1, 2, 2};
  for (int run = 0; run < 3; ++run) {
    set_num_threads(threads[run]);
    runs[run].forward(), runs[run].backward();
  }
  set_num_threads(before);
  for (int run = 1; run < 3; ++run) {
    EXPECT_TRUE(bit_equal(runs[0].y, runs[run].y) && bit_equal(runs[0].dx, runs[run].dx));
    EXPECT_TRUE(bit_equal(runs[0].dz, runs[run].dz));
    EXPECT_TRUE(bit_equal(runs[0].dweight, runs[run].dweight));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GatedShapes,
                         testing::Values(GatedShape{{1, 2}, 1, GateOrder::before},
                                         GatedShape{{1, 2}, 1, GateOrder::after},
                                         GatedShape{{7, 13}, 1, GateOrder::before},
                                         GatedShape{{2, 37, 64}, 4, GateOrder::before},
                                         GatedShape{{2, 37, 64}, 4, GateOrder::after},
                                         GatedShape{{3, 1, 21}, 7, GateOrder::before},
                                         GatedShape{{5, 51}, 3, GateOrder::after}));

// A gate that is the same everywhere leaves the plain norm.
TEST(GatedRmsNorm, ConstantGateIsThePlainNorm) {
  Case c({{6, 19}, 1, GateOrder::after}, DType::f64, 0);
  c.z.fill(1.3);
  c.forward();
  Tensor plain({6, 19}, DType::f64);
  rms_norm_forward(c.ctx, {.x = c.x, .weight = c.weight, .y = plain});
  scale(c.ctx, 1.3 / (1 + std::exp(-1.3)), plain);
  EXPECT_LE(relative_error(c.y, plain), tolerance(DType::f64, 19));
}

TEST(GatedRmsNorm, WorksInPlaceAndAccumulates) {
  for (const GateOrder gate : {GateOrder::before, GateOrder::after}) {
    Case c({{9, 12}, 2, gate}, DType::f64, 0);
    c.forward(), c.backward();
    Tensor x = c.x.clone(), dy = c.dy.clone(), dweight = c.dweight.clone();
    gated_rms_norm_forward(
        c.ctx, {.x = x, .z = c.z, .weight = c.weight, .y = x, .groups = 2, .gate = gate});
    EXPECT_TRUE(bit_equal(x, c.y));
    gated_rms_norm_backward(c.ctx, {.dy = dy,
                                    .x = c.x,
                                    .z = c.z,
                                    .weight = c.weight,
                                    .dx = dy,
                                    .dz = c.dz,
                                    .dweight = dweight,
                                    .groups = 2,
                                    .gate = gate});
    EXPECT_TRUE(bit_equal(dy, c.dx));
    scale(c.ctx, 2, c.dweight);
    EXPECT_LE(relative_error(dweight, c.dweight), tolerance(DType::f64));
  }
}

TEST(GatedRmsNorm, RefusesWhatDoesNotFit) {
  Case c({{2, 6}, 4, GateOrder::before}, DType::f32, 0);
  EXPECT_THROW(c.forward(), Error);  // 4 groups of 6 columns
  c.shape.groups = 3;
  EXPECT_NO_THROW(c.forward());
  c.weight = normal({5}, DType::f32, 1);
  EXPECT_THROW(c.forward(), Error);
  EXPECT_THROW(c.backward(), Error);
}

}  // namespace
}  // namespace sluice::test
