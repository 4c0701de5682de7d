#include "kernels/linear_xent/linear_xent.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/threads.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

// Two tokens, three words: logits {log 1, log 2, log 5} and {0, 0, 0}, weights 1 and 2.
TEST(LinearXent, HandComputed) {
  TestContext ctx;
  Tensor hidden({1, 2, 1}, DType::f64), weight({3, 1}, DType::f64), targets({1, 2}, DType::i32);
  Tensor weights({1, 2}, DType::f64), losses({1, 2}, DType::f64), loss_sum({1}, DType::f64);
  Tensor dhidden({1, 2, 1}, DType::f64), dweight({3, 1}, DType::f64);
  hidden.fill({1, 0});
  weight.fill({0, std::log(2.0), std::log(5.0)});
  targets.fill({2, 0});
  weights.fill({1, 2});
  dweight.fill(7);
  linear_xent_forward_backward(ctx, {.hidden = hidden,
                                     .weight = weight,
                                     .targets = targets,
                                     .weights = weights,
                                     .losses = losses,
                                     .loss_sum = loss_sum,
                                     .dhidden = dhidden,
                                     .dweight = dweight,
                                     .loss_scale = 0.5});
  EXPECT_NEAR(losses.get(0), std::log(8.0 / 5), 1e-15);
  EXPECT_NEAR(losses.get(1), 2 * std::log(3.0), 1e-15);
  EXPECT_NEAR(loss_sum.get(0), std::log(8.0 / 5) + 2 * std::log(3.0), 1e-15);
  const double d0 = 0.5 * (1.0 / 8), d1 = 0.5 * (2.0 / 8), d2 = 0.5 * (5.0 / 8 - 1);
  EXPECT_NEAR(dweight.get(0), 7 + d0, 1e-15);  // the second token's hidden is 0
  EXPECT_NEAR(dweight.get(1), 7 + d1, 1e-15);
  EXPECT_NEAR(dweight.get(2), 7 + d2, 1e-15);
  EXPECT_NEAR(dhidden.get(0), d1 * std::log(2.0) + d2 * std::log(5.0), 1e-15);
  EXPECT_NEAR(dhidden.get(1), 0.5 * 2 * (std::log(2.0) + std::log(5.0)) / 3, 1e-15);
}

struct Shape {
  int64_t B = 1, T = 1, D = 1, V = 1;
};

struct Case {
  Case(const Shape& s, DType dtype, int64_t padding = 0)
      : hidden({s.B, s.T, s.D}, dtype, padding),
        weight({s.V, s.D}, dtype, padding),
        targets({s.B, s.T}, DType::i32, padding),
        weights({s.B, s.T}, dtype, padding),
        losses({s.B, s.T}, dtype, padding),
        loss_sum({1}, DType::f64),
        dhidden({s.B, s.T, s.D}, dtype, padding),
        dweight({s.V, s.D}, dtype, padding) {
    hidden.fill_normal(1);
    weight.fill_normal(2);
    weights.fill_normal(3, 0.3, 1);
    targets.fill_below(4, s.V);
    for (int64_t t = 0; t < targets.numel(); t += 5) targets.set(t, -1);
    targets.set(targets.numel() - 1, double(s.V - 1));
    dweight.fill(0);
  }
  void forward() {
    linear_xent_forward(ctx, {.hidden = hidden,
                              .weight = weight,
                              .targets = targets,
                              .weights = weights,
                              .losses = losses,
                              .loss_sum = loss_sum,
                              .chunk_bytes = chunk_bytes});
  }
  void forward_backward() {
    linear_xent_forward_backward(ctx, {.hidden = hidden,
                                       .weight = weight,
                                       .targets = targets,
                                       .weights = weights,
                                       .losses = losses,
                                       .loss_sum = loss_sum,
                                       .dhidden = dhidden,
                                       .dweight = dweight,
                                       .loss_scale = 0.37,
                                       .chunk_bytes = chunk_bytes});
  }
  TestContext ctx;
  Tensor hidden, weight, targets, weights, losses, loss_sum, dhidden, dweight;
  int64_t chunk_bytes = 0;
};

class LinearXentShapes : public testing::TestWithParam<Shape> {};

TEST_P(LinearXentShapes, GradientsMatchCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.chunk_bytes = 1;  // one token at a time
  c.forward_backward();
  check_gradients(
      [&] {
        c.forward();
        return 0.37 * c.loss_sum.get(0);
      },
      {{"hidden", &c.hidden, &c.dhidden}, {"weight", &c.weight, &c.dweight}});
}

TEST_P(LinearXentShapes, ForwardAloneGivesTheSameLosses) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f32);
  a.forward();
  b.forward_backward();
  EXPECT_TRUE(bit_equal(a.losses, b.losses) && bit_equal(a.loss_sum, b.loss_sum));
}

TEST_P(LinearXentShapes, ChunkSizeChangesRoundingOnly) {
  const Shape s = GetParam();
  Case whole(s, DType::f64);
  whole.forward_backward();
  for (const int64_t rows : {1, 2, 3, 7}) {
    Case c(s, DType::f64);
    c.chunk_bytes = rows * s.V * 8;
    c.forward_backward();
    const double bound = tolerance(DType::f64, s.B * s.T);
    EXPECT_LE(relative_error(c.losses, whole.losses), bound) << rows;
    EXPECT_LE(relative_error(c.loss_sum, whole.loss_sum), bound) << rows;
    EXPECT_LE(relative_error(c.dhidden, whole.dhidden), bound) << rows;
    EXPECT_LE(relative_error(c.dweight, whole.dweight), bound) << rows;
  }
}

TEST_P(LinearXentShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f64);
  a.forward_backward();
  b.forward_backward();
  const double bound = tolerance(DType::f32, GetParam().D);
  EXPECT_LE(relative_error(a.losses, b.losses), bound);
  EXPECT_LE(relative_error(a.loss_sum, b.loss_sum), bound);
  EXPECT_LE(relative_error(a.dhidden, b.dhidden), bound);
  EXPECT_LE(relative_error(a.dweight, b.dweight), bound);
}

TEST_P(LinearXentShapes, BitEqualUnderAnyThreadCount) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f32);
  const int threads = num_threads();
  set_num_threads(1);
  a.forward_backward();
  set_num_threads(2);
  b.forward_backward();
  set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.losses, b.losses) && bit_equal(a.loss_sum, b.loss_sum));
  EXPECT_TRUE(bit_equal(a.dhidden, b.dhidden) && bit_equal(a.dweight, b.dweight));
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearXentShapes,
                         testing::Values(Shape{}, Shape{.B = 2, .T = 11, .D = 7, .V = 13},
                                         Shape{.B = 1, .T = 5, .D = 16, .V = 1},
                                         Shape{.B = 3, .T = 1, .D = 5, .V = 1031},
                                         Shape{.B = 1, .T = 23, .D = 64, .V = 2500}));

TEST(LinearXent, TokensWithoutATargetAddNothing) {
  Case c({.B = 1, .T = 4, .D = 3, .V = 5}, DType::f32);
  c.targets.fill(-1);
  c.forward_backward();
  EXPECT_EQ(c.loss_sum.get(0), 0);
  for (const Tensor* gradient : {&c.losses, &c.dhidden, &c.dweight}) {
    for (const double value : gradient->values()) EXPECT_EQ(value, 0);
  }
}

TEST(LinearXent, LargeLogitsDoNotOverflow) {
  Case c({.B = 1, .T = 2, .D = 1, .V = 3}, DType::f32);
  c.hidden.fill({1, -1});
  c.weight.fill({-3000, 0, 3000});
  c.targets.fill({2, 2});
  c.weights.fill(1);
  c.forward_backward();
  EXPECT_EQ(c.losses.values(), (std::vector<double>{0, 6000}));
  EXPECT_NEAR(c.dhidden.get(1), 0.37 * (-3000 - 3000), 1e-2);
}

TEST(LinearXent, NonFiniteLogitsGiveANonFiniteLoss) {
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    for (const int64_t V : {3, 40}) {
      Case c({.B = 1, .T = 2, .D = 1, .V = V}, DType::f32);
      c.hidden.fill(1);
      c.targets.fill(0);
      c.weight.set(V / 2, bad);
      c.forward();
      EXPECT_FALSE(std::isfinite(c.loss_sum.get(0))) << bad;
    }
  }
}

TEST(LinearXent, NamesATargetOutsideTheVocabulary) {
  Case c({.B = 2, .T = 3, .D = 2, .V = 7}, DType::f32);
  for (const int bad : {7, -2}) {
    c.targets.set(4, bad);  // row 1, position 1
    try {
      c.forward();
      FAIL() << "target " << bad << " was accepted";
    } catch (const DataError& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(concat("target ", bad, " at row 1, position 1")), what.npos) << what;
      EXPECT_NE(what.find("vocabulary of 7"), what.npos) << what;
    }
  }
}

// `plan` relies on it: the counted peak is what the run needs, and it holds one chunk of logits.
TEST(LinearXent, CountingGivesTheScratchThatTheRunNeeds) {
  Case c({.B = 1, .T = 23, .D = 8, .V = 100}, DType::f32);
  c.chunk_bytes = 5 * 100 * 4;
  Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
  const Context counting{
      .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  linear_xent_forward_backward(counting, {.hidden = c.hidden,
                                          .weight = c.weight,
                                          .targets = c.targets,
                                          .losses = c.losses,
                                          .loss_sum = c.loss_sum,
                                          .dhidden = c.dhidden,
                                          .dweight = c.dweight,
                                          .chunk_bytes = c.chunk_bytes});
  EXPECT_TRUE(std::isnan(c.losses.get(0)));
  c.forward_backward();
  EXPECT_EQ(scratch.peak(), c.ctx.scratch().peak());
  EXPECT_GE(scratch.peak(), size_t(5 * 100 * 4));
  EXPECT_LT(scratch.peak(), size_t(23 * 100 * 4));
}

TEST(LinearXent, RefusesWrongShapes) {
  Case c({.B = 1, .T = 3, .D = 2, .V = 7}, DType::f32);
  Tensor wide = zeros({7, 3}, DType::f32);
  EXPECT_THROW(linear_xent_forward(c.ctx, {.hidden = c.hidden,
                                           .weight = wide,
                                           .targets = c.targets,
                                           .losses = c.losses,
                                           .loss_sum = c.loss_sum}),
               Error);
  EXPECT_THROW(linear_xent_forward_backward(c.ctx, {.hidden = c.hidden,
                                                    .weight = c.weight,
                                                    .targets = c.targets,
                                                    .losses = c.losses,
                                                    .loss_sum = c.loss_sum,
                                                    .dhidden = c.dhidden,
                                                    .dweight = wide}),
               Error);
}

}  // namespace
}  // namespace sluice::test
