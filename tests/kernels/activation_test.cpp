#include "kernels/activation/activation.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "kernels/core/threads.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

TEST(Activation, HandComputed) {
  TestContext ctx;
  Tensor x({1, 3}, DType::f64), up({1, 3}, DType::f64), y({1, 3}, DType::f64);
  x.fill({-1, 0, 2});
  up.fill({3, 5, 10});
  activation_forward(ctx, {.kind = Activation::swiglu, .x = x, .up = up, .y = y});
  EXPECT_NEAR(y.get(0), -3 / (1 + std::exp(1.0)), 1e-15);
  EXPECT_EQ(y.get(1), 0);
  EXPECT_NEAR(y.get(2), 20 / (1 + std::exp(-2.0)), 1e-14);
  activation_forward(ctx, {.kind = Activation::relu2, .x = x, .y = y});
  EXPECT_EQ(y.values(), (std::vector<double>{0, 0, 4}));
  activation_forward(ctx, {.kind = Activation::gelu, .x = x, .y = y});
  EXPECT_NEAR(y.get(0), -0.158655253931457051, 1e-15);  // -Phi(-1)
  EXPECT_NEAR(y.get(2), 2 * 0.977249868051820793, 1e-15);
}

struct Case {
  Case(Activation kind, const Dims& dims, DType dtype, int64_t padding = 0)
      : kind(kind),
        x(dims, dtype, padding),
        up(dims, dtype, 2 * padding),
        y(dims, dtype, padding),
        dy(dims, dtype),
        dx(dims, dtype, padding),
        dup(dims, dtype, padding) {
    x.fill_normal(1, 2);
    up.fill_normal(2);
    dy.fill_normal(3);
    if (kind != Activation::swiglu) dup.fill(0);
  }
  bool gated() const { return kind == Activation::swiglu; }
  ConstTensorView gate_partner() const { return gated() ? ConstTensorView(up) : ConstTensorView{}; }
  void forward() { activation_forward(ctx, {.kind = kind, .x = x, .up = gate_partner(), .y = y}); }
  void backward() {
    activation_backward(ctx, {.kind = kind,
                              .dy = dy,
                              .x = x,
                              .up = gate_partner(),
                              .dx = dx,
                              .dup = gated() ? TensorView(dup) : TensorView{}});
  }
  Activation kind;
  TestContext ctx;
  Tensor x, up, y, dy, dx, dup;
};

class ActivationKinds : public testing::TestWithParam<std::tuple<Activation, Dims>> {
 protected:
  Case make(DType dtype, int64_t padding = 0) const {
    return Case(std::get<0>(GetParam()), std::get<1>(GetParam()), dtype, padding);
  }
};

TEST_P(ActivationKinds, GradientsMatchCentralDifferences) {
  Case c = make(DType::f64, 3);
  c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y}, {&c.dy});
  };
  check_gradients(loss, {{"x", &c.x, &c.dx}});
  if (c.gated()) check_gradients(loss, {{"up", &c.up, &c.dup}});
}

TEST_P(ActivationKinds, FloatAgreesWithDouble) {
  Case a = make(DType::f32), b = make(DType::f64);
  a.forward(), a.backward();
  b.forward(), b.backward();
  EXPECT_LE(relative_error(a.y, b.y), tolerance(DType::f32));
  EXPECT_LE(relative_error(a.dx, b.dx), tolerance(DType::f32));
  EXPECT_LE(relative_error(a.dup, b.dup), tolerance(DType::f32));
}

TEST_P(ActivationKinds, BitEqualUnderAnyThreadCount) {
  Case a = make(DType::f32), b = make(DType::f32);
  const int threads = num_threads();
  set_num_threads(1);
  a.forward(), a.backward();
  set_num_threads(2);
  b.forward(), b.backward();
  set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.y, b.y) && bit_equal(a.dx, b.dx) && bit_equal(a.dup, b.dup));
}

TEST_P(ActivationKinds, InPlaceIsTheSame) {
  Case a = make(DType::f32), b = make(DType::f32);
  a.forward(), a.backward();
  activation_backward(b.ctx, {.kind = b.kind,
                              .dy = b.dy,
                              .x = b.x,
                              .up = b.gate_partner(),
                              .dx = b.dy,
                              .dup = b.gated() ? TensorView(b.up) : TensorView{}});
  EXPECT_TRUE(bit_equal(a.dx, b.dy));
  EXPECT_TRUE(!a.gated() || bit_equal(a.dup, b.up));
  activation_forward(a.ctx, {.kind = a.kind, .x = a.x, .up = a.gate_partner(), .y = a.x});
  EXPECT_TRUE(bit_equal(a.y, a.x));
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, ActivationKinds,
    testing::Combine(testing::Values(Activation::swiglu, Activation::relu2, Activation::gelu),
                     testing::Values(Dims{1, 1}, Dims{7, 13}, Dims{2, 37, 67})));

TEST(Activation, LargeArgumentsSaturate) {
  TestContext ctx;
  Tensor x({1, 2}, DType::f32), up({1, 2}, DType::f32), y({1, 2}, DType::f32);
  x.fill({-200, 200});
  up.fill(1);
  Tensor dy({1, 2}, DType::f32), dx({1, 2}, DType::f32), dup({1, 2}, DType::f32);
  dy.fill(1);
  for (const Activation kind : {Activation::swiglu, Activation::gelu}) {
    const bool gated = kind == Activation::swiglu;
    const ConstTensorView partner = gated ? ConstTensorView(up) : ConstTensorView{};
    activation_forward(ctx, {.kind = kind, .x = x, .up = partner, .y = y});
    EXPECT_EQ(y.values(), (std::vector<double>{0, 200}));
    activation_backward(ctx, {.kind = kind,
                              .dy = dy,
                              .x = x,
                              .up = partner,
                              .dx = dx,
                              .dup = gated ? TensorView(dup) : TensorView{}});
    EXPECT_EQ(dx.values(), (std::vector<double>{0, 1}));
  }
}

Tensor ones(int64_t size, DType dtype) {
  Tensor tensor({1, size}, dtype);
  tensor.fill(1);
  return tensor;
}

// Every element, not just the norm: small values in the tails count where gradients are small.
TEST(Activation, FloatIsAccurateElementByElement) {
  constexpr int64_t kPoints = 3001;
  TestContext ctx;
  Tensor x({1, kPoints}, DType::f32), x64({1, kPoints}, DType::f64);
  for (int64_t i = 0; i < kPoints; ++i) {
    x.set(i, -9 + 18 * double(i) / (kPoints - 1));
    x64.set(i, x.get(i));
  }
  for (const Activation kind : {Activation::swiglu, Activation::relu2, Activation::gelu}) {
    const Tensor up = ones(kPoints, DType::f32), up64 = ones(kPoints, DType::f64);
    const bool gated = kind == Activation::swiglu;
    Tensor y({1, kPoints}, DType::f32), y64({1, kPoints}, DType::f64);
    activation_forward(
        ctx, {.kind = kind, .x = x, .up = gated ? ConstTensorView(up) : ConstTensorView{}, .y = y});
    activation_forward(ctx, {.kind = kind,
                             .x = x64,
                             .up = gated ? ConstTensorView(up64) : ConstTensorView{},
                             .y = y64});
    for (int64_t i = 0; i < kPoints; ++i) {
      const double square = x.get(i) * x.get(i);
      ASSERT_NEAR(y.get(i), y64.get(i), (8e-7 + 6e-8 * square) * std::abs(y64.get(i)))
          << enum_names(kind)[int(kind)] << " of " << x.get(i);
    }
  }
}

// A NaN must reach the loss, also through branches and bounds, in vectors and after them.
TEST(Activation, NansPass) {
  TestContext ctx;
  const Tensor x({1, 19}, DType::f32), given = ones(19, DType::f32);  // x is NaN
  for (const Activation kind : {Activation::swiglu, Activation::relu2, Activation::gelu}) {
    const ConstTensorView up =
        kind == Activation::swiglu ? ConstTensorView(given) : ConstTensorView{};
    Tensor y = zeros({1, 19}, DType::f32);
    activation_forward(ctx, {.kind = kind, .x = x, .up = up, .y = y});
    for (const double value : y.values()) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(Activation, NamesAndRefusals) {
  EXPECT_EQ(std::string(enum_names(Activation::gelu)[int(Activation::gelu)]), "gelu");
  EXPECT_EQ(std::string(enum_names(Activation::gelu)[int(Activation::relu2)]), "relu2");
  TestContext ctx;
  Tensor x = zeros({2, 3}, DType::f32), y({2, 4}, DType::f32);
  EXPECT_THROW(activation_forward(ctx, {.kind = Activation::gelu, .x = x, .y = y}), Error);
  EXPECT_THROW(activation_forward(ctx, {.kind = Activation::swiglu, .x = x, .y = x}), Error);
  EXPECT_THROW(activation_forward(ctx, {.kind = Activation::gelu, .x = x, .up = x, .y = x}), Error);
}

}  // namespace
}  // namespace sluice::test
