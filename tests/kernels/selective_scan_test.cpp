// B batch, T tokens, E channels, N state dim
#include "kernels/selective_scan/selective_scan.h"

#include <gtest/gtest.h>

#include "kernels/core/threads.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/selective_scan/selective_scan_cpu.h"
#include "tests/kernels/selective_scan_inputs.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

struct Case : ScanInputs {
  Case(const ScanShape& s, DType dtype, int64_t padding)
      : ScanInputs(s, dtype, padding),
        y({s.B, s.T, s.E}, dtype, padding),
        spans({s.B, scan_spans(s.T), s.E, s.N}, dtype),
        final({s.B, s.E, s.N}, dtype),
        dfinal(normal({s.B, s.E, s.N}, dtype, 11)),
        du({s.B, s.T, s.E}, dtype, padding),
        ddelta({s.B, s.T, s.E}, dtype, padding),
        dz({s.B, s.T, s.E}, dtype, padding),
        dB({s.B, s.T, s.N}, dtype, padding),
        dC({s.B, s.T, s.N}, dtype, padding),
        y_again({s.B, s.T, s.E}, dtype, padding),
        ddt_bias(zeros({s.E}, dtype)),
        dA_log(zeros({s.E, s.N}, dtype)),
        dD(zeros({s.E}, dtype)),
        dinitial({s.B, s.E, s.N}, dtype) {}
  SelectiveScanForward forward_args() const {
    return {.u = u,
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
            .span_states = spans,
            .final_state = final};
  }
  SelectiveScanBackward backward_args() const {
    return {.dy = dy,
            .u = u,
            .delta = delta,
            .dt_bias = dt_bias,
            .A_log = A_log,
            .B = B,
            .C = C,
            .D = D,
            .z = gate(),
            .doc_begin = docs,
            .span_states = spans,
            .dfinal_state = dfinal,
            .du = du,
            .ddelta = ddelta,
            .dB = dB,
            .dC = dC,
            .dz = shape.gate ? TensorView(dz) : TensorView(),
            .y = y_again,
            .ddt_bias = ddt_bias,
            .dA_log = dA_log,
            .dD = dD,
            .dinitial_state = dinitial};
  }
  void forward() { selective_scan_forward(ctx, forward_args()); }
  void backward() { selective_scan_backward(ctx, backward_args()); }
  // Whatever forward and backward write, with names.
  std::vector<std::pair<const char*, const Tensor*>> results() const {
    std::vector<std::pair<const char*, const Tensor*>> all = {{"y", &y},
                                                              {"span_states", &spans},
                                                              {"final_state", &final},
                                                              {"y again", &y_again},
                                                              {"du", &du},
                                                              {"ddelta", &ddelta},
                                                              {"dB", &dB},
                                                              {"dC", &dC},
                                                              {"ddt_bias", &ddt_bias},
                                                              {"dA_log", &dA_log},
                                                              {"dD", &dD},
                                                              {"dinitial_state", &dinitial}};
    if (shape.gate) all.push_back({"dz", &dz});
    return all;
  }

  Tensor y, spans, final, dfinal, du, ddelta, dz, dB, dC, y_again, ddt_bias, dA_log, dD, dinitial;
};

// A step of dt = 1 and A = -1, so a = 1/e.
TEST(SelectiveScan, HandComputed) {
  Case c({.B = 1, .T = 3, .E = 1, .N = 1, .starts = {{2}}, .first = -1}, DType::f64, 0);
  c.u.fill({2, 3, 5});
  c.delta.fill(std::log(std::exp(1.0) - 1));
  c.dt_bias.fill(0), c.A_log.fill(0), c.D.fill(10);
  c.B.fill({1, -1, 1}), c.C.fill({1, 2, 3}), c.initial.fill(4);
  c.z.fill(0.7);
  c.forward();
  const double a = std::exp(-1), silu = 0.7 / (1 + std::exp(-0.7));
  const double h0 = 4 * a + 2, h1 = h0 * a - 3;
  EXPECT_NEAR(c.y.get(0), (h0 + 20) * silu, 1e-14);
  EXPECT_NEAR(c.y.get(1), (2 * h1 + 30) * silu, 1e-14);
  EXPECT_NEAR(c.y.get(2), (3 * 5 + 50) * silu, 1e-14);  // a document starts
  EXPECT_NEAR(c.final.get(0), 5, 1e-14);
  EXPECT_EQ(c.spans.get(0), 4);
}

class ScanShapes : public testing::TestWithParam<ScanShape> {};

TEST_P(ScanShapes, GradientsMatchCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.forward();
  c.backward();
  EXPECT_LE(relative_error(c.y_again, c.y), tolerance(DType::f64));
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y, &c.final}, {&c.dy, &c.dfinal});
  };
  std::vector<CheckedInput> inputs = {{"u", &c.u, &c.du},
                                      {"delta", &c.delta, &c.ddelta},
                                      {"dt_bias", &c.dt_bias, &c.ddt_bias},
                                      {"A_log", &c.A_log, &c.dA_log},
                                      {"B", &c.B, &c.dB},
                                      {"C", &c.C, &c.dC},
                                      {"D", &c.D, &c.dD},
                                      {"initial_state", &c.initial, &c.dinitial}};
  if (GetParam().gate) inputs.push_back({"z", &c.z, &c.dz});
  check_gradients(loss, inputs, kGradientCheck, 24);
}

TEST_P(ScanShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32, 5), b(GetParam(), DType::f64, 0);
  a.forward(), a.backward();
  b.forward(), b.backward();
  const auto floats = a.results(), doubles = b.results();
  for (size_t i = 0; i < floats.size(); ++i) {
    EXPECT_LE(relative_error(*floats[i].second, *doubles[i].second),
              tolerance(DType::f32, GetParam().T * GetParam().N))
        << floats[i].first;
  }
}

TEST_P(ScanShapes, BitsDoNotDependOnRunOrThreads) {
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
    const auto first = runs[0].results(), other = runs[run].results();
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(bit_equal(*first[i].second, *other[i].second)) << first[i].first;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ScanShapes,
    testing::Values(
        ScanShape{.B = 1, .T = 1, .E = 1, .N = 1, .starts = {}},
        ScanShape{.B = 2, .T = 5, .E = 3, .N = 2, .starts = {}, .first = -3},
        ScanShape{.B = 1, .T = 31, .E = 13, .N = 7, .starts = {{1, 2, 30}}, .gate = false},
        ScanShape{.B = 2, .T = 32, .E = 4, .N = 16, .starts = {{31}, {}}, .first = -1},
        ScanShape{.B = 1, .T = 33, .E = 67, .N = 3, .starts = {{32}}, .first = -40},
        ScanShape{.B = 2, .T = 97, .E = 5, .N = 8, .starts = {{32, 63, 64, 65}, {96}}, .first = -2},
        ScanShape{.B = 1, .T = 37, .E = 131, .N = 16, .starts = {}, .first = -1, .gate = false}));

TEST(SelectiveScan, FastPathAgreesWithTheReferenceInFloat) {
  const ScanShape shape{.B = 2, .T = 70, .E = 65, .N = 16, .starts = {{3, 64}, {}}, .first = -7};
  Case fast(shape, DType::f32, 0), plain(shape, DType::f32, 0);
  fast.forward(), fast.backward();
  cpu::selective_scan_forward<float>(plain.forward_args());
  const Dims by_block{cpu::scan_blocks(65), 2 * 70, 16};
  Tensor dB(by_block, DType::f32), dC(by_block, DType::f32), sums({2, 65, 18}, DType::f32);
  const cpu::ScanPartials partials{.dB = dB, .dC = dC, .parameters = sums};
  cpu::selective_scan_backward<float>(plain.backward_args(), partials);
  cpu::reduce_scan_partials<float>(plain.backward_args(), partials);
  const auto a = fast.results(), b = plain.results();
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_LE(relative_error(*a[i].second, *b[i].second), tolerance(DType::f32, 70 * 16))
        << a[i].first;
  }
}

TEST(SelectiveScan, ParameterGradientsAccumulate) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const ScanShape shape{.B = 1, .T = 35, .E = 3, .N = 4, .starts = {}, .first = -1};
    Case once(shape, dtype, 0), twice(shape, dtype, 0);
    once.forward(), once.backward();
    twice.forward(), twice.backward(), twice.backward();
    const std::pair<const Tensor*, const Tensor*> sums[] = {
        {&once.ddt_bias, &twice.ddt_bias}, {&once.dA_log, &twice.dA_log}, {&once.dD, &twice.dD}};
    for (const auto& [single, sum] : sums) {
      scale(once.ctx, 2, *single);
      EXPECT_LE(relative_error(*sum, *single), tolerance(dtype));
    }
    EXPECT_TRUE(bit_equal(once.du, twice.du) && bit_equal(once.dB, twice.dB));
  }
}

// Rows [begin, begin + count) of every row of the batch (here one).
void take_tokens(const Tensor& from, int64_t begin, Tensor& to) {
  const int64_t columns = from.dims().row_size();
  for (int64_t i = 0; i < to.numel(); ++i) to.set(i, from.get(begin * columns + i));
}

// Cut anywhere, with the state passed forwards and its gradient passed back.
TEST(SelectiveScan, ShardsAgreeWithTheWhole) {
  const int64_t T = 40, E = 3, N = 4;
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double bound = tolerance(dtype, T * N);
    Case whole({.B = 1, .T = T, .E = E, .N = N, .starts = {{20}}, .first = -1}, dtype, 0);
    whole.forward(), whole.backward();
    for (const int64_t cut : {1, 20, 21, 32, 39}) {
      Case left({.B = 1, .T = cut, .E = E, .N = N, .starts = {{20}}, .first = -1}, dtype, 0);
      Case right({.B = 1, .T = T - cut, .E = E, .N = N, .starts = {{20 - cut}}, .first = -1}, dtype,
                 0);
      if (cut == 20) right.docs = documents(1, T - cut, {{0}});
      for (auto [from, to, other] : {std::tuple{&whole.u, &left.u, &right.u},
                                     {&whole.delta, &left.delta, &right.delta},
                                     {&whole.z, &left.z, &right.z},
                                     {&whole.B, &left.B, &right.B},
                                     {&whole.C, &left.C, &right.C},
                                     {&whole.dy, &left.dy, &right.dy}}) {
        take_tokens(*from, 0, *to), take_tokens(*from, cut, *other);
      }
      left.forward();
      right.initial = left.final.clone();
      right.forward(), right.backward();
      left.dfinal = right.dinitial.clone();
      left.backward();
      EXPECT_LE(relative_error(right.final, whole.final), bound);
      EXPECT_LE(relative_error(left.dinitial, whole.dinitial), bound);
      Tensor y({1, T - cut, E}, dtype), du({1, cut, E}, dtype), dB({1, cut, N}, dtype);
      take_tokens(whole.y, cut, y), take_tokens(whole.du, 0, du), take_tokens(whole.dB, 0, dB);
      EXPECT_LE(relative_error(right.y, y), bound);
      EXPECT_LE(relative_error(left.du, du), bound);
      EXPECT_LE(relative_error(left.dB, dB), bound);
      add(whole.ctx, left.dA_log, right.dA_log);
      EXPECT_LE(relative_error(right.dA_log, whole.dA_log), bound);
    }
  }
}

TEST(SelectiveScan, StepsAgreeWithTheForward) {
  const int64_t B = 2, T = 6, E = 3, N = 5;
  for (const DType dtype : {DType::f64, DType::f32}) {
    Case c({.B = B, .T = T, .E = E, .N = N, .starts = {}, .first = -1}, dtype, 0);
    c.forward();
    Tensor state = c.initial.clone(), y({B, T, E}, dtype);
    Tensor u({B, E}, dtype), delta({B, E}, dtype), z({B, E}, dtype), y_t({B, E}, dtype);
    Tensor input({B, N}, dtype), output({B, N}, dtype);
    for (int64_t t = 0; t < T; ++t) {
      const auto take = [&](const Tensor& from, Tensor& to) {
        const int64_t width = to.dims().row_size();
        for (int64_t i = 0; i < to.numel(); ++i) {
          to.set(i, from.get((i / width * T + t) * width + i % width));
        }
      };
      take(c.u, u), take(c.delta, delta), take(c.z, z), take(c.B, input), take(c.C, output);
      selective_scan_step(c.ctx, {.u = u,
                                  .delta = delta,
                                  .dt_bias = c.dt_bias,
                                  .A_log = c.A_log,
                                  .B = input,
                                  .C = output,
                                  .D = c.D,
                                  .z = z,
                                  .state = state,
                                  .y = y_t});
      for (int64_t i = 0; i < B * E; ++i) y.set((i / E * T + t) * E + i % E, y_t.get(i));
    }
    EXPECT_LE(relative_error(y, c.y), tolerance(dtype, T * N));
    EXPECT_LE(relative_error(state, c.final), tolerance(dtype, T * N));
  }
}

TEST(SelectiveScan, OptionalOutputsMayBeAbsent) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const ScanShape shape{.B = 1, .T = 34, .E = 2, .N = 3, .starts = {}};
    Case c(shape, dtype, 0), bare(shape, dtype, 0);
    c.initial.fill(0), c.dfinal.fill(0);
    c.forward(), c.backward();
    SelectiveScanForward forward = bare.forward_args();
    forward.initial_state = {}, forward.final_state = {}, forward.span_states = {};
    selective_scan_forward(bare.ctx, forward);
    EXPECT_TRUE(bit_equal(bare.y, c.y));
    SelectiveScanBackward backward = bare.backward_args();
    backward.span_states = c.spans;
    backward.dfinal_state = {}, backward.dinitial_state = {}, backward.y = {};
    selective_scan_backward(bare.ctx, backward);
    EXPECT_TRUE(bit_equal(bare.du, c.du) && bit_equal(bare.dA_log, c.dA_log));
  }
}

TEST(SelectiveScan, RefusesWhatDoesNotFit) {
  Case c({.B = 1, .T = 33, .E = 2, .N = 3, .starts = {}}, DType::f32, 0);
  SelectiveScanForward forward = c.forward_args();
  forward.span_states = c.initial;
  EXPECT_THROW(selective_scan_forward(c.ctx, forward), Error);
  forward = c.forward_args();
  forward.B = c.u;
  EXPECT_THROW(selective_scan_forward(c.ctx, forward), Error);
  SelectiveScanBackward backward = c.backward_args();
  backward.dz = {};
  EXPECT_THROW(selective_scan_backward(c.ctx, backward), Error);
}

}  // namespace
}  // namespace sluice::test
