// The folds of a row's tokens into one map of the state, against the forward and backward that walk
// the tokens. B batch, T tokens, E channels, N state dim
#include <gtest/gtest.h>

#include "kernels/core/threads.h"
#include "kernels/selective_scan/selective_scan_cpu.h"
#include "tests/kernels/selective_scan_inputs.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

struct Case : ScanInputs {
  Case(const ScanShape& s, DType dtype, int64_t padding)
      : ScanInputs(s, dtype, padding),
        state({s.B, s.E, s.N}, dtype),
        dt_sum({s.B, s.E}, dtype),
        decay({1, s.B * s.E * s.N}, dtype),
        dinitial({s.B, s.E, s.N}, dtype) {}
  SelectiveScanFold fold_args() const {
    return {.u = u,
            .delta = delta,
            .dt_bias = dt_bias,
            .A_log = A_log,
            .B = B,
            .doc_begin = docs,
            .state = state,
            .dt_sum = dt_sum};
  }
  SelectiveScanReverseFold reverse_args() const {
    return {.dy = dy,
            .delta = delta,
            .dt_bias = dt_bias,
            .A_log = A_log,
            .C = C,
            .z = gate(),
            .doc_begin = docs,
            .dinitial_state = dinitial};
  }
  void fold() {
    const int64_t cuts[] = {0, shape.T};
    selective_scan_fold(ctx, fold_args());
    selective_scan_decay(ctx, {.dt_sum = dt_sum.view().reshape({1, shape.B * shape.E}),
                               .A_log = A_log,
                               .doc_begin = docs,
                               .cuts = cuts,
                               .decay = decay});
    selective_scan_reverse_fold(ctx, reverse_args());
  }
  // The output of the forward over these tokens, and its final state.
  std::pair<Tensor, Tensor> forward() {
    Tensor y(u.dims(), u.dtype()), final(initial.dims(), u.dtype());
    selective_scan_forward(ctx, {.u = u,
                                 .delta = delta,
                                 .dt_bias = dt_bias,
                                 .A_log = A_log,
                                 .B = B,
                                 .C = C,
                                 .D = D,
                                 .z = gate(),
                                 .doc_begin = docs,
                                 .initial_state = initial,
                                 .y = y,
                                 .final_state = final});
    return {std::move(y), std::move(final)};
  }

  Tensor state, dt_sum, decay, dinitial;
};

// Steps of dt = 1 and A = -1, so a = 1/e.
TEST(SelectiveScanFold, HandComputed) {
  for (const bool reset : {false, true}) {
    const ScanShape shape{
        .B = 1, .T = 2, .E = 1, .N = 1, .starts = {{reset ? 1 : 5}}, .first = -3, .gate = false};
    Case c(shape, DType::f64, 0);
    c.u.fill({2, 3}), c.B.fill({1, -1}), c.C.fill({5, 7}), c.dy.fill({1, 2});
    c.delta.fill(std::log(std::exp(1.0) - 1)), c.dt_bias.fill(0), c.A_log.fill(0);
    c.fold();
    const double a = std::exp(-1);
    EXPECT_NEAR(c.state.get(0), reset ? -3 : 2 * a - 3, 1e-14);
    EXPECT_NEAR(c.dt_sum.get(0), reset ? 1 : 2, 1e-14);
    EXPECT_NEAR(c.decay.get(0), reset ? 0 : a * a, 1e-15);
    EXPECT_NEAR(c.dinitial.get(0), reset ? 5 * a : 5 * a + 2 * 7 * a * a, 1e-14);
    EXPECT_TRUE(!reset || c.decay.get(0) == 0);
  }
}

class FoldShapes : public testing::TestWithParam<ScanShape> {};

TEST_P(FoldShapes, TheMapIsTheForward) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    Case c(GetParam(), dtype, 3);
    c.fold();
    Tensor mapped(c.initial.dims(), dtype);
    for (int64_t i = 0; i < mapped.numel(); ++i) {
      mapped.set(i, c.decay.get(i) * c.initial.get(i) + c.state.get(i));
    }
    EXPECT_LE(relative_error(mapped, c.forward().second), tolerance(dtype, c.shape.T * c.shape.N));
  }
}

TEST_P(FoldShapes, TheReverseFoldIsTheGradientOfTheInitialState) {
  Case c(GetParam(), DType::f64, 2);
  c.fold();
  const auto loss = [&] {
    const Tensor y = c.forward().first;
    return weighted_sum({&y}, {&c.dy});
  };
  check_gradients(loss, {{"initial_state", &c.initial, &c.dinitial}}, kGradientCheck, 40);
}

TEST_P(FoldShapes, FloatAgreesWithDoubleAndWithTheReference) {
  Case a(GetParam(), DType::f32, 1), b(GetParam(), DType::f64, 0), plain(GetParam(), DType::f32, 0);
  a.fold(), b.fold();
  cpu::selective_scan_fold<float>(plain.fold_args());
  cpu::selective_scan_reverse_fold<float>(plain.reverse_args());
  const double bound = tolerance(DType::f32, GetParam().T * GetParam().N);
  EXPECT_LE(relative_error(a.state, b.state), bound);
  EXPECT_LE(relative_error(a.dt_sum, b.dt_sum), bound);
  EXPECT_LE(relative_error(a.decay, b.decay), bound);
  EXPECT_LE(relative_error(a.dinitial, b.dinitial), bound);
  EXPECT_LE(relative_error(plain.state, b.state), bound);
  EXPECT_LE(relative_error(plain.dt_sum, b.dt_sum), bound);
  EXPECT_LE(relative_error(plain.dinitial, b.dinitial), bound);
}

TEST_P(FoldShapes, BitsDoNotDependOnRunOrThreads) {
  const int before = num_threads();
  Case first(GetParam(), DType::f32, 0), second(GetParam(), DType::f32, 0);
  set_num_threads(1);
  first.fold();
  set_num_threads(2);
  second.fold();
  set_num_threads(before);
  EXPECT_TRUE(bit_equal(first.state, second.state) && bit_equal(first.dt_sum, second.dt_sum));
  EXPECT_TRUE(bit_equal(first.dinitial, second.dinitial) && bit_equal(first.decay, second.decay));
}

// The first document of every row began before it, so a state comes in.
INSTANTIATE_TEST_SUITE_P(
    Shapes, FoldShapes,
    testing::Values(
        ScanShape{.B = 1, .T = 1, .E = 1, .N = 1, .starts = {}, .first = -3},
        ScanShape{.B = 2, .T = 1, .E = 3, .N = 2, .starts = {{0}, {}}, .first = -3},
        ScanShape{
            .B = 2, .T = 33, .E = 67, .N = 3, .starts = {{}, {0}}, .first = -3, .gate = false},
        ScanShape{.B = 3, .T = 70, .E = 5, .N = 7, .starts = {{32, 64}, {69}, {1}}, .first = -3},
        ScanShape{.B = 1, .T = 37, .E = 131, .N = 16, .starts = {}, .first = -3}));

// Spans of three ranks in rows of two documents: resets are where documents start, edges included.
TEST(SelectiveScanDecay, ResetsWhereADocumentStarts) {
  const Tensor docs = documents(2, 10, {{4}, {3, 9}});
  const Tensor A_log = zeros({1, 2}, DType::f64);
  Tensor dt_sum({3, 2}, DType::f64), decay({3, 4}, DType::f64);
  TestContext ctx;
  dt_sum.fill({1, 2, 3, 4, 5, 6});
  const int64_t cuts[] = {1, 4, 7, 10};
  selective_scan_decay(
      ctx, {.dt_sum = dt_sum, .A_log = A_log, .doc_begin = docs, .cuts = cuts, .decay = decay});
  const auto near = [&](int64_t span, int64_t row, double expected) {
    for (int64_t n = 0; n < 2; ++n) {
      EXPECT_DOUBLE_EQ(decay.get(span * 4 + row * 2 + n), expected) << span << " " << row;
    }
  };
  near(0, 0, std::exp(-1)), near(0, 1, 0);  // tokens 1 to 3
  near(1, 0, 0), near(1, 1, std::exp(-4));  // a document starts at the span's first token
  near(2, 0, std::exp(-5)), near(2, 1, 0);  // ... and at its last
}

TEST(SelectiveScanFold, RefusesWhatDoesNotFit) {
  Case c({.B = 1, .T = 5, .E = 2, .N = 3, .starts = {}, .first = -3}, DType::f32, 0);
  SelectiveScanFold fold = c.fold_args();
  fold.dt_sum = c.state;
  EXPECT_THROW(selective_scan_fold(c.ctx, fold), Error);
  SelectiveScanReverseFold reverse = c.reverse_args();
  reverse.C = c.u;
  EXPECT_THROW(selective_scan_reverse_fold(c.ctx, reverse), Error);
  const int64_t cuts[] = {0, 6};
  const SelectiveScanDecay decay{.dt_sum = c.dt_sum.view().reshape({1, 2}),
                                 .A_log = c.A_log,
                                 .doc_begin = c.docs,
                                 .cuts = cuts,
                                 .decay = c.decay};
  EXPECT_THROW(selective_scan_decay(c.ctx, decay), Error);
}

}  // namespace
}  // namespace sluice::test
