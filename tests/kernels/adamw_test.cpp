#include "kernels/adamw/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/threads.h"
#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

struct Scalars {
  double lr = 0.01;
  double grad_scale = 0.7;
  int64_t t = 3;
  bool apply = true;
};

// n elements of one span, from `first` in the arena on.
struct State {
  State(int64_t n, DType dtype)
      : value({n}, dtype),
        grad({n}, dtype),
        m({n}, dtype),
        v({n}, dtype),
        scalars({kNumUpdateScalars}, DType::f64),
        spans({1, kNumSpanColumns}, DType::f64) {
    value.fill_normal(1);
    grad.fill_normal(2);
    m.fill_normal(3);
    v.fill_normal(4, 0.1, 1);
    spans.fill({0, double(n), 0.1, 1});
  }
  AdamW args(const Scalars& step = {}, double beta1 = 0.9, double beta2 = 0.95, double eps = 1e-8) {
    scalars.fill({step.lr, 1 - std::pow(beta1, step.t), 1 - std::pow(beta2, step.t),
                  step.grad_scale, step.apply ? 1.0 : 0.0});
    return {.value = value,
            .grad = grad,
            .exp_avg = m,
            .exp_avg_sq = v,
            .scalars = scalars,
            .spans = spans,
            .beta1 = beta1,
            .beta2 = beta2,
            .eps = eps};
  }
  TestContext ctx;
  Tensor value, grad, m, v, scalars, spans;
};

// By the paper's algorithm 2, line by line.
TEST(AdamW, HandComputed) {
  State s(1, DType::f64);
  s.value.fill(2), s.grad.fill(4), s.m.fill(0), s.v.fill(0);
  const auto step = [&](int64_t t) {
    adamw(s.ctx, s.args({.lr = 0.5, .grad_scale = 0.5, .t = t}, 0.5, 0.75, 1));
  };
  step(1);  // g = 2: m = 1, v = 1; m_hat = 2, v_hat = 4
  EXPECT_DOUBLE_EQ(s.m.get(0), 1);
  EXPECT_DOUBLE_EQ(s.v.get(0), 1);
  const double after_first = 2 - 0.5 * (2.0 / (2 + 1) + 0.1 * 2);
  EXPECT_DOUBLE_EQ(s.value.get(0), after_first);

  step(2);  // m = 1.5, v = 1.75; m_hat = 1.5 / 0.75, v_hat = 1.75 / 0.4375 = 4
  EXPECT_DOUBLE_EQ(s.m.get(0), 1.5);
  EXPECT_DOUBLE_EQ(s.v.get(0), 1.75);
  EXPECT_DOUBLE_EQ(s.value.get(0), after_first - 0.5 * (2.0 / (2 + 1) + 0.1 * after_first));
}

// Two spans, a gap between them and a piece of the arena that cuts both.
TEST(AdamW, SpansHaveTheirOwnDecayAndRate) {
  State s(10, DType::f64);
  const Tensor before = s.value.clone();
  Tensor spans({2, kNumSpanColumns}, DType::f64);
  spans.fill({95, 104, 0.0, 1.0, 106, 130, 0.5, 2.0});
  AdamW args = s.args();
  args.spans = spans;
  args.first = 100;
  adamw(s.ctx, args);
  for (int64_t i = 0; i < 10; ++i) {
    State one(1, DType::f64);
    one.value.fill(before.get(i)), one.grad.fill(s.grad.get(i));
    one.m.fill_normal(3), one.v.fill_normal(4, 0.1, 1);
    State ten(10, DType::f64);
    one.m.fill(ten.m.get(i)), one.v.fill(ten.v.get(i));
    one.spans.fill({0, 1, i < 4 ? 0.0 : 0.5, i < 4 ? 1.0 : 2.0});
    if (i < 4 || i >= 6) adamw(one.ctx, one.args());
    EXPECT_EQ(s.value.get(i), one.value.get(0)) << i;
  }
}

TEST(AdamW, AStepThatIsNotAppliedChangesNothing) {
  State s(100, DType::f32), untouched(100, DType::f32);
  adamw(s.ctx, s.args({.apply = false}));
  EXPECT_TRUE(bit_equal(s.value, untouched.value) && bit_equal(s.m, untouched.m));
}

TEST(AdamW, WritesRoundedValues) {
  State s(100, DType::f32);
  Buffer memory(100 * sizeof(bf16), kCpu);
  AdamW args = s.args();
  args.rounded = TensorView(memory.data(), {100}, DType::bf16);
  adamw(s.ctx, args);
  for (int64_t i = 0; i < 100; ++i) {
    const float value = float(s.value.get(i));
    EXPECT_EQ(args.rounded.as<bf16>()[i].bits, bf16(value).bits);
    EXPECT_NEAR(float(args.rounded.as<bf16>()[i]), value, std::abs(value) / 256);
  }
}

TEST(AdamW, FloatAgreesWithDouble) {
  for (const int64_t n : {1, 13, 16384, 40961}) {
    State a(n, DType::f32), b(n, DType::f64);
    adamw(a.ctx, a.args());
    adamw(b.ctx, b.args());
    EXPECT_LE(relative_error(a.value, b.value), tolerance(DType::f32)) << n;
    EXPECT_LE(relative_error(a.m, b.m), tolerance(DType::f32)) << n;
    EXPECT_LE(relative_error(a.v, b.v), tolerance(DType::f32)) << n;
  }
}

// Late in training 1 - beta2 is small against 1: what is added must not be lost in beta2's
// rounding.
TEST(AdamW, KeepsASmallComplementOfBeta) {
  State s(1, DType::f32);
  s.value.fill(0), s.grad.fill(1), s.m.fill(0), s.v.fill(0);
  adamw(s.ctx, s.args({.grad_scale = 1}, 0.9, 0.9999999));
  EXPECT_NEAR(s.v.get(0), 1e-7, 1e-13);
}

TEST(AdamW, BitEqualUnderAnyThreadCount) {
  State a(50021, DType::f32), b(50021, DType::f32);
  const int threads = num_threads();
  set_num_threads(1);
  adamw(a.ctx, a.args());
  set_num_threads(2);
  adamw(b.ctx, b.args());
  set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.value, b.value) && bit_equal(a.m, b.m) && bit_equal(a.v, b.v));
}

TEST(AdamW, RefusesWrongArguments) {
  State s(3, DType::f32);
  Tensor longer = zeros({4}, DType::f32);
  AdamW args = s.args();
  args.grad = longer;
  EXPECT_THROW(adamw(s.ctx, args), Error);
  args = s.args();
  args.eps = 0;
  EXPECT_THROW(adamw(s.ctx, args), Error);
}

}  // namespace
}  // namespace sluice::test
