#include "kernels/causal_conv1d/causal_conv1d.h"

#include <gtest/gtest.h>

#include "kernels/causal_conv1d/causal_conv1d_cpu.h"
#include "kernels/core/threads.h"
#include "kernels/elementwise/elementwise.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

TEST(CausalConv1d, HandComputed) {
  TestContext ctx;
  Tensor x({1, 4, 1}, DType::f64), weight({1, 2}, DType::f64), bias({1}, DType::f64);
  Tensor y({1, 4, 1}, DType::f64);
  x.fill({1, 2, 3, 4});
  weight.fill({10, 1});
  bias.fill({0.5});
  const Tensor docs = documents(1, 4, {{2}});  // the token at 2 does not see the one at 1
  causal_conv1d_forward(
      ctx, {.x = x, .weight = weight, .bias = bias, .doc_begin = docs, .y = y, .silu = false});
  EXPECT_EQ(y.values(), (std::vector<double>{1.5, 12.5, 3.5, 34.5}));
  causal_conv1d_forward(ctx, {.x = x, .weight = weight, .bias = bias, .doc_begin = docs, .y = y});
  EXPECT_NEAR(y.get(0), 1.5 / (1 + std::exp(-1.5)), 1e-15);
}

struct ConvShape {
  int64_t B, T, C, K;
  std::vector<std::vector<int64_t>> starts;
  int64_t first = 0;  // doc_begin of each row's first document
  bool halo = false;
  bool bias = true;
  bool silu = true;
};
std::ostream& operator<<(std::ostream& out, const ConvShape& s) {
  return out << "B" << s.B << " T" << s.T << " C" << s.C << " K" << s.K << " first " << s.first
             << (s.halo ? " halo" : "") << (s.bias ? " bias" : "") << (s.silu ? " silu" : "");
}

struct Case {
  Case(const ConvShape& s, DType dtype, int64_t padding)
      : shape(s),
        x({s.B, s.T, s.C}, dtype, padding),
        weight({s.C, s.K}, dtype),
        bias({s.C}, dtype),
        docs(documents(s.B, s.T, s.starts, s.first)),
        halo({s.B, s.K - 1, s.C}, dtype),
        y({s.B, s.T, s.C}, dtype, padding),
        dy({s.B, s.T, s.C}, dtype),
        dx({s.B, s.T, s.C}, dtype, padding),
        dweight({s.C, s.K}, dtype),
        dbias({s.C}, dtype),
        dhalo({s.B, s.K - 1, s.C}, dtype) {
    x.fill_normal(1), weight.fill_normal(2), bias.fill_normal(3), halo.fill_normal(4);
    dy.fill_normal(5);
    dweight.fill(0), dbias.fill(0);
  }
  ConstTensorView maybe(bool given, const Tensor& tensor) const {
    return given ? ConstTensorView(tensor) : ConstTensorView();
  }
  CausalConv1dForward forward_args() const {
    return {.x = x,
            .weight = weight,
            .bias = maybe(shape.bias, bias),
            .doc_begin = docs,
            .halo = maybe(shape.halo, halo),
            .y = y,
            .silu = shape.silu};
  }
  CausalConv1dBackward backward_args() const {
    return {.dy = dy,
            .x = x,
            .weight = weight,
            .bias = maybe(shape.bias, bias),
            .doc_begin = docs,
            .halo = maybe(shape.halo, halo),
            .dx = dx,
            .dweight = dweight,
            .dbias = shape.bias ? TensorView(dbias) : TensorView(),
            .dhalo = shape.halo ? TensorView(dhalo) : TensorView(),
            .silu = shape.silu};
  }
  void forward() { causal_conv1d_forward(ctx, forward_args()); }
  void backward() { causal_conv1d_backward(ctx, backward_args()); }

  ConvShape shape;
  TestContext ctx;
  Tensor x, weight, bias, docs, halo, y, dy, dx, dweight, dbias, dhalo;
};

class ConvShapes : public testing::TestWithParam<ConvShape> {};

TEST_P(ConvShapes, GradientsMatchCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.forward();
  c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y}, {&c.dy});
  };
  std::vector<CheckedInput> inputs = {{"x", &c.x, &c.dx}, {"weight", &c.weight, &c.dweight}};
  if (GetParam().bias) inputs.push_back({"bias", &c.bias, &c.dbias});
  if (GetParam().halo) inputs.push_back({"halo", &c.halo, &c.dhalo});
  check_gradients(loss, inputs, kGradientCheck, 60);
}

TEST_P(ConvShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32, 5), b(GetParam(), DType::f64, 0);
  a.forward(), a.backward();
  b.forward(), b.backward();
  const double bound = tolerance(DType::f32, GetParam().K);
  EXPECT_LE(relative_error(a.y, b.y), bound);
  EXPECT_LE(relative_error(a.dx, b.dx), bound);
  const double sum_bound = tolerance(DType::f32, GetParam().B * GetParam().T);
  EXPECT_LE(relative_error(a.dweight, b.dweight), sum_bound);
  EXPECT_TRUE(!GetParam().bias || relative_error(a.dbias, b.dbias) <= sum_bound);
  EXPECT_TRUE(!GetParam().halo || relative_error(a.dhalo, b.dhalo) <= bound);
}

TEST_P(ConvShapes, BitsDoNotDependOnRunOrThreads) {
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
    EXPECT_TRUE(bit_equal(runs[0].dweight, runs[run].dweight));
    EXPECT_TRUE(!GetParam().bias || bit_equal(runs[0].dbias, runs[run].dbias));
    EXPECT_TRUE(!GetParam().halo || bit_equal(runs[0].dhalo, runs[run].dhalo));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ConvShapes,
    testing::Values(
        ConvShape{.B = 1, .T = 1, .C = 1, .K = 1, .starts = {}},
        ConvShape{.B = 1, .T = 1, .C = 3, .K = 4, .starts = {}, .first = -1, .halo = true},
        ConvShape{.B = 2, .T = 2, .C = 5, .K = 4, .starts = {}, .first = -2, .halo = true},
        ConvShape{.B = 2, .T = 7, .C = 13, .K = 3, .starts = {{1, 2, 6}, {3}}},
        ConvShape{.B = 3,
                  .T = 41,
                  .C = 17,
                  .K = 4,
                  .starts = {{8, 16, 17, 18}, {}, {1, 40}},
                  .first = -9,
                  .halo = true},
        ConvShape{.B = 1, .T = 67, .C = 19, .K = 4, .starts = {{32}}, .bias = false, .silu = false},
        ConvShape{.B = 2,
                  .T = 9,
                  .C = 6,
                  .K = 6,
                  .starts = {{4}, {}},
                  .first = -3,
                  .halo = true,
                  .bias = false},
        ConvShape{.B = 1, .T = 5, .C = 1031, .K = 4, .starts = {{2}}}));

TEST(CausalConv1d, FastPathAgreesWithTheReferenceInFloat) {
  const ConvShape shape{
      .B = 2, .T = 37, .C = 21, .K = 4, .starts = {{5, 6}, {30}}, .first = -4, .halo = true};
  Case fast(shape, DType::f32, 0), plain(shape, DType::f32, 0);
  fast.forward(), fast.backward();
  cpu::causal_conv1d_forward<float>(plain.forward_args());
  cpu::causal_conv1d_backward<float>(plain.backward_args());
  EXPECT_LE(relative_error(fast.y, plain.y), tolerance(DType::f32, 4));
  EXPECT_LE(relative_error(fast.dx, plain.dx), tolerance(DType::f32, 4));
  EXPECT_LE(relative_error(fast.dweight, plain.dweight), tolerance(DType::f32, 74));
  EXPECT_LE(relative_error(fast.dbias, plain.dbias), tolerance(DType::f32, 74));
  EXPECT_LE(relative_error(fast.dhalo, plain.dhalo), tolerance(DType::f32, 4));
}

TEST(CausalConv1d, ParameterGradientsAccumulate) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const ConvShape shape{.B = 1, .T = 11, .C = 3, .K = 4, .starts = {}};
    Case once(shape, dtype, 0), twice(shape, dtype, 0);
    once.backward();
    twice.backward(), twice.backward();
    scale(once.ctx, 2, once.dweight), scale(once.ctx, 2, once.dbias);
    EXPECT_LE(relative_error(twice.dweight, once.dweight), tolerance(dtype, 11));
    EXPECT_LE(relative_error(twice.dbias, once.dbias), tolerance(dtype, 11));
  }
}

// A row cut in two at every place, the right part reading the left one's last inputs as its halo.
TEST(CausalConv1d, ShardsWithHaloAgreeWithTheWhole) {
  const int64_t T = 9, C = 5, K = 4;
  const ConvShape whole_shape{.B = 1, .T = T, .C = C, .K = K, .starts = {{4}}};
  Case whole(whole_shape, DType::f64, 0);
  whole.forward(), whole.backward();
  for (int64_t cut = 1; cut < T; ++cut) {
    const int64_t first = cut > 4 ? 4 - cut : -cut;
    Case right(
        {.B = 1, .T = T - cut, .C = C, .K = K, .starts = {{4 - cut}}, .first = first, .halo = true},
        DType::f64, 0);
    for (int64_t i = 0; i < (T - cut) * C; ++i) {
      right.x.set(i, whole.x.get(cut * C + i));
      right.dy.set(i, whole.dy.get(cut * C + i));
    }
    for (int64_t i = 0; i < (K - 1) * C; ++i) {
      const int64_t at = (cut - K + 1) * C + i;
      right.halo.set(i, at >= 0 ? whole.x.get(at) : 0);
    }
    right.forward(), right.backward();
    for (int64_t i = 0; i < (T - cut) * C; ++i) {
      ASSERT_NEAR(right.y.get(i), whole.y.get(cut * C + i), 1e-14) << "cut " << cut;
      ASSERT_NEAR(right.dx.get(i), whole.dx.get(cut * C + i), 1e-14) << "cut " << cut;
    }
  }
}

TEST(CausalConv1d, StepsAgreeWithTheForward) {
  for (const int64_t K : {1, 2, 4}) {
    const int64_t B = 2, T = 7, C = 5;
    Case c({.B = B, .T = T, .C = C, .K = K, .starts = {}}, DType::f64, 0);
    c.forward();
    Tensor tail = zeros({B, K - 1, C}, DType::f64), x({B, C}, DType::f64), y({B, C}, DType::f64);
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t i = 0; i < B * C; ++i) x.set(i, c.x.get((i / C * T + t) * C + i % C));
      causal_conv1d_step(c.ctx, {.x = x, .weight = c.weight, .bias = c.bias, .tail = tail, .y = y});
      for (int64_t i = 0; i < B * C; ++i) {
        ASSERT_NEAR(y.get(i), c.y.get((i / C * T + t) * C + i % C), 1e-14) << "token " << t;
      }
    }
  }
}

TEST(CausalConv1d, RefusesWhatDoesNotFit) {
  const ConvShape shape{.B = 1, .T = 3, .C = 2, .K = 2, .starts = {}};
  Case c(shape, DType::f32, 0);
  CausalConv1dForward forward = c.forward_args();
  forward.y = TensorView(c.x);
  EXPECT_THROW(causal_conv1d_forward(c.ctx, forward), Error);
  forward = c.forward_args();
  forward.halo = c.x;
  EXPECT_THROW(causal_conv1d_forward(c.ctx, forward), Error);
  CausalConv1dBackward backward = c.backward_args();
  backward.dbias = {};
  EXPECT_THROW(causal_conv1d_backward(c.ctx, backward), Error);
  backward = c.backward_args();
  backward.dhalo = c.dhalo;
  EXPECT_THROW(causal_conv1d_backward(c.ctx, backward), Error);
}

}  // namespace
}  // namespace sluice::test
