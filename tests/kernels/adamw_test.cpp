#include "kernels/adamw/adamw.h"

#include <gtest/gtest.h>

#include "kernels/core/threads.h"
#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

struct State {
  State(int64_t n, DType dtype)
      : value({n}, dtype), grad({n}, dtype), m({n}, dtype), v({n}, dtype) {
    value.fill_normal(1);
    grad.fill_normal(2);
    m.fill_normal(3);
    v.fill_normal(4, 0.1, 1);
  }
  AdamW args() {
    return {.value = value,
            .grad = grad,
            .exp_avg = m,
            .exp_avg_sq = v,
            .lr = 0.01,
            .weight_decay = 0.1,
            .grad_scale = 0.7,
            .t = 3};
  }
  TestContext ctx;
  Tensor value, grad, m, v;
};

// By the paper's algorithm 2, line by line.
TEST(AdamW, HandComputed) {
  State s(1, DType::f64);
  s.value.fill(2), s.grad.fill(4), s.m.fill(0), s.v.fill(0);
  const AdamW base{.value = s.value,
                   .grad = s.grad,
                   .exp_avg = s.m,
                   .exp_avg_sq = s.v,
                   .lr = 0.5,
                   .beta1 = 0.5,
                   .beta2 = 0.75,
                   .eps = 1,
                   .weight_decay = 0.1,
                   .grad_scale = 0.5};
  AdamW first = base;
  first.t = 1;
  adamw(s.ctx, first);  // g = 2: m = 1, v = 1; m_hat = 2, v_hat = 4
  EXPECT_DOUBLE_EQ(s.m.get(0), 1);
  EXPECT_DOUBLE_EQ(s.v.get(0), 1);
  const double after_first = 2 - 0.5 * (2.0 / (2 + 1) + 0.1 * 2);
  EXPECT_DOUBLE_EQ(s.value.get(0), after_first);

  AdamW second = base;
  second.t = 2;
  adamw(s.ctx, second);  // m = 1.5, v = 1.75; m_hat = 1.5 / 0.75, v_hat = 1.75 / 0.4375 = 4
  EXPECT_DOUBLE_EQ(s.m.get(0), 1.5);
  EXPECT_DOUBLE_EQ(s.v.get(0), 1.75);
  EXPECT_DOUBLE_EQ(s.value.get(0), after_first - 0.5 * (2.0 / (2 + 1) + 0.1 * after_first));
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
  AdamW args = s.args();
  args.beta2 = 0.9999999;
  args.grad_scale = 1;
  adamw(s.ctx, args);
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
  args.t = 0;
  EXPECT_THROW(adamw(s.ctx, args), Error);
}

}  // namespace
}  // namespace sluice::test
