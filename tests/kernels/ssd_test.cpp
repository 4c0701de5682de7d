// Mamba-2's SSD as a chain of four operators, against the recurrence token by token.
// Gradients are in ssd_gradient_test.cpp.
#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/chunk_state/entering_states.h"
#include "kernels/ssd_step/ssd_step.h"
#include "tests/kernels/ssd_chain.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

struct Recurrent {
  Tensor y, final_state;
};

// Dao and Gu, 2024, eq. 16, one token at a time, from the chain's raw inputs alone.
Recurrent recurrent(const SsdChain& c) {
  const auto [name, batch, T, H, G, P, N, Q, starts, first, mean, dt_min, dt_max] = c.shape;
  Recurrent out{Tensor({batch, T, H, P}, DType::f64), c.initial.clone()};
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t t = 0; t < T; ++t) {
        const int64_t row = b * T + t, g = h / (H / G);
        const double soft = std::log1p(std::exp(c.dt_raw.get(row * H + h) + c.dt_bias.get(h)));
        const double dt = std::min(std::max(soft, dt_min), dt_max);
        const double decay = std::exp(-dt * std::exp(c.A_log.get(h)));
        for (int64_t p = 0; p < P; ++p) {
          const double x = c.x.get((row * H + h) * P + p);
          double y = c.D.get(h) * x;
          for (int64_t n = 0; n < N; ++n) {
            const int64_t at = ((b * H + h) * P + p) * N + n;
            const double before = c.doc_begin.get(row) == t ? 0 : out.final_state.get(at);
            const double after = decay * before + dt * x * c.B.get((row * G + g) * N + n);
            out.final_state.set(at, after);
            y += after * c.C.get((row * G + g) * N + n);
          }
          out.y.set((row * H + h) * P + p, y);
        }
      }
    }
  }
  return out;
}

TEST(Ssd, HandComputed) {
  // One head, x, B and C scalars, dt = log 2 (softplus(0)) and A = -1: every decay is 1/2.
  SsdChain c({.T = 3, .Q = 2, .first = -1}, DType::f64);
  c.x.fill({1, 2, 3}), c.B.fill({1, 1, 2}), c.C.fill({1, 3, 1});
  c.dt_raw.fill(0), c.dt_bias.fill(0), c.A_log.fill(0), c.D.fill(10), c.initial.fill(4);
  c.forward();
  const double dt = std::log(2);
  EXPECT_NEAR(c.cum.get(1), -2 * dt, 1e-15);
  EXPECT_NEAR(c.cum.get(2), -dt, 1e-15);  // a new chunk
  EXPECT_NEAR(c.decay.get(0), 0.25, 1e-15);
  EXPECT_NEAR(c.y.get(0), (2 + dt) + 10, 1e-14);            // state 2 + dt
  EXPECT_NEAR(c.y.get(1), 3 * (1 + 2.5 * dt) + 20, 1e-14);  // state 1 + dt/2 + 2 dt
  EXPECT_NEAR(c.y.get(2), (0.5 + 1.25 * dt + 6 * dt) + 30, 1e-14);
  EXPECT_NEAR(c.final_state.get(0), 0.5 + 7.25 * dt, 1e-14);
  EXPECT_NEAR(c.total_decay.get(0), 0.125, 1e-15);
}

class SsdShapes : public testing::TestWithParam<SsdShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, SsdShapes, testing::ValuesIn(ssd_shapes()), name_of_shape);

TEST_P(SsdShapes, EqualsTheRecurrence) {
  SsdChain c(GetParam(), DType::f64);
  c.forward();
  const Recurrent expected = recurrent(c);
  EXPECT_LE(relative_error(c.y, expected.y), tolerance(DType::f64, c.shape.T * c.shape.N));
  EXPECT_LE(relative_error(c.final_state, expected.final_state),
            tolerance(DType::f64, c.shape.T * c.shape.N));
}

TEST_P(SsdShapes, ChunkLengthChangesNothing) {
  SsdChain whole(GetParam(), DType::f64);
  whole.forward(), whole.backward();
  const double bound = tolerance(DType::f64, 64 * whole.shape.T * whole.shape.N);
  for (const int64_t Q : {1, 2, 3, 7, 16, 64}) {
    SCOPED_TRACE(Q);
    SsdShape shape = GetParam();
    shape.Q = Q;
    SsdChain c(shape, DType::f64);
    c.forward(), c.backward();
    EXPECT_LE(relative_error(c.y, whole.y), bound);
    EXPECT_LE(relative_error(c.final_state, whole.final_state), bound);
    EXPECT_LE(relative_error(c.total_decay, whole.total_decay), bound);
    EXPECT_LE(relative_error(c.dx, whole.dx), bound);
    EXPECT_LE(relative_error(c.dB, whole.dB), bound);
    EXPECT_LE(relative_error(c.dC, whole.dC), bound);
    EXPECT_LE(relative_error(c.ddt_raw, whole.ddt_raw), bound);
    EXPECT_LE(relative_error(c.dinitial, whole.dinitial), bound);
    EXPECT_LE(relative_error(c.dA_log, whole.dA_log), bound);
    EXPECT_LE(relative_error(c.dD, whole.dD), bound);
  }
}

TEST_P(SsdShapes, FloatAgreesWithDouble) {
  SsdChain a(GetParam(), DType::f32), b(GetParam(), DType::f64);
  a.forward(), a.backward();
  b.forward(), b.backward();
  const double bound = tolerance(DType::f32, 16 * a.shape.T * a.shape.N);
  EXPECT_LE(relative_error(a.y, b.y), bound);
  EXPECT_LE(relative_error(a.final_state, b.final_state), bound);
  EXPECT_LE(relative_error(a.dx, b.dx), bound);
  EXPECT_LE(relative_error(a.dB, b.dB), bound);
  EXPECT_LE(relative_error(a.dC, b.dC), bound);
  EXPECT_LE(relative_error(a.dD, b.dD), bound);
  EXPECT_LE(relative_error(a.dinitial, b.dinitial), bound);
  const double cancelling = 4 * bound;  // sums of shares of both signs
  EXPECT_LE(relative_error(a.ddt_raw, b.ddt_raw), cancelling);
  EXPECT_LE(relative_error(a.ddt_bias, b.ddt_bias), cancelling);
  EXPECT_LE(relative_error(a.dA_log, b.dA_log), cancelling);
}

TEST_P(SsdShapes, RerunsAndThreadCountsAreBitEqual) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  SsdChain a(GetParam(), DType::f32);
  a.forward(), a.backward();
  omp_set_num_threads(2);
  SsdChain b(GetParam(), DType::f32);
  b.forward(), b.backward();
  omp_set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.y, b.y) && bit_equal(a.final_state, b.final_state));
  EXPECT_TRUE(bit_equal(a.dx, b.dx) && bit_equal(a.dB, b.dB) && bit_equal(a.dC, b.dC));
  EXPECT_TRUE(bit_equal(a.ddt_raw, b.ddt_raw) && bit_equal(a.ddt_bias, b.ddt_bias));
  EXPECT_TRUE(bit_equal(a.dA_log, b.dA_log) && bit_equal(a.dD, b.dD));
  EXPECT_TRUE(bit_equal(a.dinitial, b.dinitial));
}

TEST_P(SsdShapes, EnteringStatesAreThoseOfTheTwoOperators) {
  SsdChain c(GetParam(), DType::f64);
  c.cumsum(), c.chunk_states(), c.pass_states();
  Tensor incoming(c.incoming.dims(), DType::f64), decay(c.decay.dims(), DType::f64);
  Tensor final_state(c.final_state.dims(), DType::f64);
  entering_states(c.ctx, {.x = c.x,
                          .B = c.B,
                          .dt = c.dt,
                          .cum = c.cum,
                          .doc_begin = c.doc_begin,
                          .initial = c.initial,
                          .incoming = incoming,
                          .decay = decay,
                          .final_state = final_state,
                          .chunk = c.shape.Q});
  EXPECT_TRUE(bit_equal(incoming, c.incoming) && bit_equal(final_state, c.final_state));
  EXPECT_TRUE(bit_equal(decay, c.decay));
}

TEST_P(SsdShapes, OneTokenAtATimeEqualsTheChain) {
  SsdChain c(GetParam(), DType::f64);
  c.forward();
  const auto [name, batch, T, H, G, P, N, Q, starts, first, mean, dt_min, dt_max] = c.shape;
  for (int64_t b = 0; b < batch; ++b) {
    Tensor x({1, H, P}, DType::f64), B({1, G, N}, DType::f64), C({1, G, N}, DType::f64);
    Tensor dt_raw({1, H}, DType::f64), state({1, H, P, N}, DType::f64), y({1, H, P}, DType::f64);
    const auto token = [](const Tensor& from, int64_t row, Tensor& to) {
      for (int64_t i = 0; i < to.numel(); ++i) to.set(i, from.get(row * to.numel() + i));
    };
    token(c.initial, b, state);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t row = b * T + t;
      if (c.doc_begin.get(row) == t) state.fill(0);
      token(c.x, row, x), token(c.B, row, B), token(c.C, row, C), token(c.dt_raw, row, dt_raw);
      ssd_step(c.ctx, {.x = x,
                       .dt_raw = dt_raw,
                       .dt_bias = c.dt_bias,
                       .A_log = c.A_log,
                       .B = B,
                       .C = C,
                       .D = c.D,
                       .state = state,
                       .y = y.poison(),
                       .dt_min = c.shape.dt_min,
                       .dt_max = c.shape.dt_max});
      Tensor expected(y.dims(), DType::f64);
      token(c.y, row, expected);
      EXPECT_LE(relative_error(y, expected), tolerance(DType::f64, 64 * T * N)) << "token " << t;
    }
    Tensor expected(state.dims(), DType::f64);
    token(c.final_state, b, expected);
    EXPECT_LE(relative_error(state, expected), tolerance(DType::f64, 64 * T * N));
  }
}

TEST(SsdStep, FloatAgreesWithDoubleAndBadShapesAreRefused) {
  TestContext ctx;
  const auto run = [&](DType dtype, int64_t G) {
    const Tensor x = normal({3, 4, 5}, dtype, 1), dt_raw = normal({3, 4}, dtype, 2);
    const Tensor dt_bias = normal({4}, dtype, 3), A_log = normal({4}, dtype, 4);
    const Tensor B = normal({3, G, 7}, dtype, 5), C = normal({3, G, 7}, dtype, 6);
    const Tensor D = normal({4}, dtype, 7);
    Tensor state = normal({3, 4, 5, 7}, dtype, 8), y({3, 4, 5}, dtype);
    ssd_step(ctx, {.x = x,
                   .dt_raw = dt_raw,
                   .dt_bias = dt_bias,
                   .A_log = A_log,
                   .B = B,
                   .C = C,
                   .D = D,
                   .state = state,
                   .y = y});
    return std::pair(std::move(state), std::move(y));
  };
  const auto a = run(DType::f32, 2), b = run(DType::f64, 2);
  EXPECT_LE(relative_error(a.first, b.first), tolerance(DType::f32, 4));
  EXPECT_LE(relative_error(a.second, b.second), tolerance(DType::f32, 7));
  EXPECT_THROW(run(DType::f32, 3), Error);
}

TEST(Ssd, SplitRowsChainThroughTheState) {
  // A row cut at token 9: the second part starts from the first part's final state.
  const SsdShape whole{.T = 21, .H = 2, .P = 3, .N = 4, .Q = 4, .starts = {{5, 14}}};
  SsdChain row(whole, DType::f64);
  row.forward();
  SsdChain left({.T = 9, .H = 2, .P = 3, .N = 4, .Q = 4, .starts = {{5}}}, DType::f64);
  SsdChain right({.T = 12, .H = 2, .P = 3, .N = 4, .Q = 4, .starts = {{5}}, .first = -4},
                 DType::f64);
  const auto cut = [](const Tensor& from, Tensor& to, int64_t offset) {
    const int64_t size = to.view().row_size();
    for (int64_t i = 0; i < to.numel(); ++i) to.set(i, from.get(offset * size + i));
  };
  cut(row.x, left.x, 0), cut(row.B, left.B, 0), cut(row.C, left.C, 0);
  cut(row.dt_raw, left.dt_raw, 0);
  cut(row.x, right.x, 9), cut(row.B, right.B, 9), cut(row.C, right.C, 9);
  cut(row.dt_raw, right.dt_raw, 9);
  left.forward();
  for (int64_t i = 0; i < left.final_state.numel(); ++i) {
    right.initial.set(i, left.final_state.get(i));
  }
  right.forward();
  Tensor tail = right.y.clone();
  cut(row.y, tail, 9);
  EXPECT_LE(relative_error(right.y, tail), tolerance(DType::f64, 100));
  EXPECT_LE(relative_error(right.final_state, row.final_state), tolerance(DType::f64, 100));
}

TEST(Ssd, ExtremeDecaysStayFinite) {
  // exp(cum) underflows within a few tokens; the reverse would overflow if it were ever taken.
  SsdChain c({.T = 40, .H = 1, .P = 2, .N = 2, .Q = 16, .starts = {{0, 20}}, .A_log = 9},
             DType::f32);
  c.dt_bias.fill(5);
  c.forward(), c.backward();
  for (const Tensor* tensor : {&c.y, &c.final_state, &c.dx, &c.dB, &c.dC, &c.ddt_raw, &c.dA_log}) {
    for (int64_t i = 0; i < tensor->numel(); ++i) EXPECT_TRUE(std::isfinite(tensor->get(i)));
  }
}

TEST(Ssd, PlainForwardNeedsNoOptionalArgument) {
  SsdChain c({.T = 10, .H = 2, .P = 3, .N = 4, .Q = 4}, DType::f64);
  c.initial.fill(0);
  c.forward();
  Tensor in_place = c.state.clone();
  state_passing_forward(c.ctx, {.state = in_place, .decay = c.decay, .incoming = in_place});
  EXPECT_TRUE(bit_equal(in_place, c.incoming));
}

TEST(Ssd, RefusesWrongShapes) {
  const SsdShape good{.T = 6, .H = 4, .G = 2, .P = 3, .N = 4, .Q = 4};
  const auto refuses = [&](auto&& spoil) {
    SsdChain c(good, DType::f32);
    c.forward(), c.backward();
    spoil(c);
    EXPECT_THROW((c.forward(), c.backward()), Error);
  };
  refuses([](SsdChain& c) { c.shape.Q = 0; });
  refuses([](SsdChain& c) { c.shape.Q = 2; });  // M differs from the states'
  refuses([](SsdChain& c) { c.A_log = Tensor({3}, DType::f32); });
  refuses([](SsdChain& c) { c.shape.dt_max = -1; });
  refuses([](SsdChain& c) { c.doc_begin = Tensor({1, 5}, DType::i32); });
  refuses([](SsdChain& c) { c.B = Tensor({1, 6, 3, 4}, DType::f32); });
  refuses([](SsdChain& c) { c.C = Tensor({1, 6, 2, 5}, DType::f32); });
  refuses([](SsdChain& c) { c.D = Tensor({4}, DType::f64); });
  refuses([](SsdChain& c) { c.decay = Tensor({1, 2, 5}, DType::f32); });
  refuses([](SsdChain& c) { c.dlog_decay = Tensor({1, 1, 4}, DType::f32); });
  refuses([](SsdChain& c) { c.dinitial = Tensor({1, 4, 3, 5}, DType::f32); });
  refuses([](SsdChain& c) { c.dB = Tensor({1, 6, 2, 3}, DType::f32); });
  refuses([](SsdChain& c) { c.dx = Tensor({1, 6, 4, 2}, DType::f32); });
  refuses([](SsdChain& c) { c.ddt_bias = Tensor({5}, DType::f32); });
}

}  // namespace
}  // namespace sluice::test
