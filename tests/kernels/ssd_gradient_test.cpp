// Gradients of Mamba-2's SSD against central differences: of the whole chain, of each operator, and
// of each share of the log-decays' gradient by itself.
#include <gtest/gtest.h>
#include <omp.h>

#include <functional>

#include "kernels/chunk_scan/ssd_backward.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "tests/kernels/ssd_chain.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

// Thousands of tiny forwards: one thread each, or they would mostly wait for one another.
class SsdGradients : public testing::TestWithParam<SsdShape> {
 protected:
  SsdGradients() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SsdGradients() override { omp_set_num_threads(threads_); }

 private:
  const int threads_;
};
INSTANTIATE_TEST_SUITE_P(Shapes, SsdGradients, testing::ValuesIn(ssd_shapes()), name_of_shape);

TEST_P(SsdGradients, OfTheChain) {
  SsdChain c(GetParam(), DType::f64);
  c.forward(), c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y, &c.final_state}, {&c.dy, &c.dfinal});
  };
  check_gradients(loss,
                  {{"x", &c.x, &c.dx},
                   {"dt_raw", &c.dt_raw, &c.ddt_raw},
                   {"dt_bias", &c.dt_bias, &c.ddt_bias},
                   {"A_log", &c.A_log, &c.dA_log},
                   {"B", &c.B, &c.dB},
                   {"C", &c.C, &c.dC},
                   {"D", &c.D, &c.dD},
                   {"initial", &c.initial, &c.dinitial}},
                  kGradientCheck, 60);
}

TEST_P(SsdGradients, OfChunkCumsum) {
  SsdChain c(GetParam(), DType::f64);
  c.ddt.fill_normal(21), c.dcum.fill_normal(22);
  c.cumsum(), c.cumsum_backward();
  const auto loss = [&] {
    c.cumsum();
    return weighted_sum({&c.dt, &c.cum}, {&c.ddt, &c.dcum});
  };
  check_gradients(loss, {{"dt_raw", &c.dt_raw, &c.ddt_raw},
                         {"dt_bias", &c.dt_bias, &c.ddt_bias},
                         {"A_log", &c.A_log, &c.dA_log}});
}

TEST_P(SsdGradients, OfChunkScan) {
  SsdChain c(GetParam(), DType::f64);
  c.forward(), c.scan_backward();
  const auto loss = [&] {
    c.scan();
    return weighted_sum({&c.y}, {&c.dy});
  };
  check_gradients(loss,
                  {{"x", &c.x, &c.dx},
                   {"B", &c.B, &c.dB},
                   {"C", &c.C, &c.dC},
                   {"dt", &c.dt, &c.ddt},
                   {"cum", &c.cum, &c.dcum},
                   {"D", &c.D, &c.dD},
                   {"incoming", &c.incoming, &c.dincoming}},
                  kGradientCheck, 60);
}

// chunk_state_backward adds to what it finds: here zeros, and dlog_decay = dL/d(decay) * decay.
void clear_shares(SsdChain& c) { c.dx.fill(0), c.dB.fill(0), c.ddt.fill(0), c.dcum.fill(0); }

TEST_P(SsdGradients, OfChunkState) {
  SsdChain c(GetParam(), DType::f64);
  c.forward();
  Tensor ddecay = normal(c.decay.dims(), DType::f64, 23);
  c.dincoming.fill_normal(24);  // dL/dstate
  for (int64_t i = 0; i < ddecay.numel(); ++i) {
    c.dlog_decay.set(i, ddecay.get(i) * c.decay.get(i));
  }
  clear_shares(c), c.chunk_states_backward();
  const auto loss = [&] {
    c.chunk_states();
    return weighted_sum({&c.state, &c.decay}, {&c.dincoming, &ddecay});
  };
  check_gradients(
      loss,
      {{"x", &c.x, &c.dx}, {"B", &c.B, &c.dB}, {"dt", &c.dt, &c.ddt}, {"cum", &c.cum, &c.dcum}},
      kGradientCheck, 60);
}

TEST_P(SsdGradients, OfStatePassing) {
  SsdChain c(GetParam(), DType::f64);
  c.forward();
  Tensor dincoming = normal(c.state.dims(), DType::f64, 25), doutgoing(c.state.dims(), DType::f64);
  c.pass_states();
  state_passing_backward(c.ctx, {.dincoming = dincoming,
                                 .incoming = c.incoming,
                                 .decay = c.decay,
                                 .dfinal = c.dfinal,
                                 .doutgoing = doutgoing,
                                 .dlog_decay = c.dlog_decay,
                                 .dinitial = c.dinitial});
  // dlog_decay is the gradient of the logarithm: compared by perturbing log(decay).
  Tensor log_decay(c.decay.dims(), DType::f64);
  for (int64_t i = 0; i < log_decay.numel(); ++i) log_decay.set(i, std::log(c.decay.get(i)));
  const auto loss = [&] {
    for (int64_t i = 0; i < log_decay.numel(); ++i) c.decay.set(i, std::exp(log_decay.get(i)));
    c.pass_states();
    return weighted_sum({&c.incoming, &c.final_state}, {&dincoming, &c.dfinal});
  };
  check_gradients(loss,
                  {{"state", &c.state, &doutgoing},
                   {"log_decay", &log_decay, &c.dlog_decay},
                   {"initial", &c.initial, &c.dinitial}},
                  kGradientCheck, 60);
}

// Each log-decay share alone. Decays near 1, documents longer than a chunk: where they weigh most.
const SsdShape kShares{.name = "shares",
                       .T = 19,
                       .H = 2,
                       .P = 3,
                       .N = 4,
                       .Q = 6,
                       .starts = {{15}},
                       .first = -1,
                       .A_log = -3};

TEST(SsdDecayShares, PairsOfOneChunk) {
  SsdChain c(kShares, DType::f64);
  c.forward();
  c.incoming.fill(0);  // no state enters
  c.scan_backward();
  const auto loss = [&] {
    c.scan();
    return weighted_sum({&c.y}, {&c.dy});
  };
  check_gradients(loss, {{"cum", &c.cum, &c.dcum}});
}

TEST(SsdDecayShares, FromTheIncomingState) {
  SsdChain c(kShares, DType::f64);
  c.forward();
  c.B.fill(0);  // no pairs
  c.scan_backward();
  const auto loss = [&] {
    c.scan();
    return weighted_sum({&c.y}, {&c.dy});
  };
  check_gradients(loss, {{"cum", &c.cum, &c.dcum}});
}

TEST(SsdDecayShares, FromTokensToTheirChunksEnd) {
  SsdChain c(kShares, DType::f64);
  c.forward();
  c.dincoming.fill_normal(24), c.dlog_decay.fill(0);
  clear_shares(c), c.chunk_states_backward();
  const auto loss = [&] {
    c.chunk_states();
    return weighted_sum({&c.state}, {&c.dincoming});
  };
  check_gradients(loss, {{"cum", &c.cum, &c.dcum}});
}

TEST(SsdDecayShares, OfTheChunksDecay) {
  SsdChain c(kShares, DType::f64);
  c.forward();
  Tensor ddecay = normal(c.decay.dims(), DType::f64, 23);
  c.dincoming.fill(0);
  for (int64_t i = 0; i < ddecay.numel(); ++i) {
    c.dlog_decay.set(i, ddecay.get(i) * c.decay.get(i));
  }
  clear_shares(c), c.chunk_states_backward();
  const auto loss = [&] {
    c.chunk_states();
    return weighted_sum({&c.decay}, {&ddecay});
  };
  check_gradients(loss, {{"cum", &c.cum, &c.dcum}});
}

TEST(SsdDecayShares, OfTheFinalState) {
  // Only the final state is looked at: everything flows through state_passing.
  SsdChain c(kShares, DType::f64);
  c.shape.starts.clear();
  c.doc_begin = documents(c.shape.B, c.shape.T, {}, -1);
  c.dy.fill(0);
  c.forward(), c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.final_state}, {&c.dfinal});
  };
  check_gradients(loss, {{"dt_raw", &c.dt_raw, &c.ddt_raw}, {"A_log", &c.A_log, &c.dA_log}});
}

TEST(SsdBackward, ParameterGradientsAccumulate) {
  SsdChain fresh(ssd_shapes()[5], DType::f64), c(ssd_shapes()[5], DType::f64);
  c.ddt_bias.fill(3), c.dA_log.fill(5), c.dD.fill(-7);
  fresh.forward(), fresh.backward();
  c.forward(), c.backward();
  for (int64_t h = 0; h < c.shape.H; ++h) {
    EXPECT_NEAR(c.ddt_bias.get(h), fresh.ddt_bias.get(h) + 3, 1e-12);
    EXPECT_NEAR(c.dA_log.get(h), fresh.dA_log.get(h) + 5, 1e-12);
    EXPECT_NEAR(c.dD.get(h), fresh.dD.get(h) - 7, 1e-12);
  }
}

// The operators of a whole row, without what enters and leaves it.
SsdForward forward_of(SsdChain& c) {
  return {.x = c.x,
          .B = c.B,
          .C = c.C,
          .dt = c.dt,
          .cum = c.cum,
          .D = c.D,
          .doc_begin = c.doc_begin,
          .y = c.y,
          .final_state = c.final_state,
          .chunk = c.shape.Q};
}
SsdBackward backward_of(SsdChain& c) {
  return {.dy = c.dy,
          .x = c.x,
          .B = c.B,
          .C = c.C,
          .dt = c.dt,
          .cum = c.cum,
          .D = c.D,
          .doc_begin = c.doc_begin,
          .incoming = c.incoming,
          .decay = c.decay,
          .dx = c.dx,
          .dB = c.dB,
          .dC = c.dC,
          .ddt = c.ddt,
          .dcum = c.dcum,
          .dD = c.dD,
          .chunk = c.shape.Q};
}

void expect_same(const SsdChain& got, const SsdChain& expected,
                 const std::vector<Tensor SsdChain::*>& members) {
  for (const auto member : members) {
    const Tensor &a = got.*member, &b = expected.*member;
    for (int64_t i = 0; i < a.numel(); ++i) ASSERT_EQ(a.get(i), b.get(i));
  }
}
const std::vector<Tensor SsdChain::*> kGradients = {&SsdChain::dx,  &SsdChain::dB,   &SsdChain::dC,
                                                    &SsdChain::ddt, &SsdChain::dcum, &SsdChain::dD};

void for_each_shape(const std::function<void(const SsdShape&, DType)>& body) {
  for (const SsdShape& shape : ssd_shapes()) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      SCOPED_TRACE(concat(shape.name, " ", name_of(dtype)));
      body(shape, dtype);
    }
  }
}

TEST(SsdForward, InOneIsItsPartsOneByOne) {
  for_each_shape([](const SsdShape& shape, DType dtype) {
    SsdChain parts(shape, dtype), c(shape, dtype);
    parts.forward(), c.cumsum();
    SsdForward args = forward_of(c);
    args.initial = c.initial;
    ssd_forward(c.ctx, args);
    expect_same(c, parts, {&SsdChain::y, &SsdChain::final_state});
  });
}

// The fold is what the row ends with if it begins with zeros; and what is found enters the row.
TEST(SsdForward, FindsTheEnteringStateByTheFold) {
  for_each_shape([](const SsdShape& shape, DType dtype) {
    SsdChain parts(shape, dtype), zero(shape, dtype), c(shape, dtype), alone(shape, dtype);
    zero.initial.fill(0);
    parts.forward(), zero.forward(), c.cumsum();
    Tensor folded(c.final_state.dims(), dtype);
    SsdForward args = forward_of(c);
    args.find_initial = [&](const StateFold& fold) -> ConstTensorView {
      fold(folded, c.total_decay);
      return c.initial;
    };
    ssd_forward(c.ctx, args);
    expect_same(c, parts, {&SsdChain::y, &SsdChain::final_state, &SsdChain::total_decay});
    alone.cumsum();
    fold_states(alone.ctx,
                {.x = alone.x,
                 .B = alone.B,
                 .dt = alone.dt,
                 .cum = alone.cum,
                 .doc_begin = alone.doc_begin,
                 .chunk = shape.Q},
                alone.final_state, alone.total_decay);
    expect_same(alone, zero, {&SsdChain::final_state, &SsdChain::total_decay});
    for (int64_t i = 0; i < folded.numel(); ++i) ASSERT_EQ(folded.get(i), zero.final_state.get(i));
  });
}

TEST(SsdBackward, InOneIsItsPartsOneByOne) {
  for_each_shape([](const SsdShape& shape, DType dtype) {
    SsdChain parts(shape, dtype), c(shape, dtype);
    parts.forward(), c.forward();
    parts.scan_backward(), parts.pass_states_backward(), parts.chunk_states_backward();
    SsdBackward args = backward_of(c);
    args.dfinal = c.dfinal;
    ssd_backward(c.ctx, args);
    expect_same(c, parts, kGradients);
  });
}

// The fold is the gradient of the state before the row if nobody looks at the one after it; and
// what is found flows back from the row's end.
TEST(SsdBackward, FindsTheLeavingGradientByTheFold) {
  for_each_shape([](const SsdShape& shape, DType dtype) {
    SsdChain parts(shape, dtype), zero(shape, dtype), c(shape, dtype);
    zero.dfinal.fill(0);
    for (SsdChain* const chain : {&parts, &zero}) {
      chain->forward(), chain->scan_backward();
      chain->pass_states_backward(), chain->chunk_states_backward();
    }
    c.forward();
    SsdBackward args = backward_of(c);
    args.find_dfinal = [&](const GradientFold& fold) -> ConstTensorView {
      fold(c.dinitial);
      return c.dfinal;
    };
    ssd_backward(c.ctx, args);
    expect_same(c, parts, kGradients);
    expect_same(c, zero, {&SsdChain::dinitial});
  });
}

TEST(SsdBackward, NothingCrossesADocumentStart) {
  // A document starts at token 7, inside a chunk: gradients of what precedes it must be exactly 0
  // if only what follows it is looked at, and the initial state's too.
  SsdChain c({.T = 13, .H = 2, .P = 3, .N = 4, .Q = 5, .starts = {{7}}, .first = -1}, DType::f64);
  for (int64_t i = 0; i < 7 * 2 * 3; ++i) c.dy.set(i, 0);
  c.forward(), c.backward();
  for (int64_t i = 0; i < 7 * 2 * 3; ++i) EXPECT_EQ(c.dx.get(i), 0);
  for (int64_t i = 0; i < 7 * 2; ++i) EXPECT_EQ(c.ddt_raw.get(i), 0);
  for (int64_t i = 0; i < c.dinitial.numel(); ++i) EXPECT_EQ(c.dinitial.get(i), 0);
  EXPECT_NE(c.dx.get(7 * 2 * 3), 0);
}

TEST(SsdBackward, ClampedStepsHaveNoGradient) {
  SsdChain c({.T = 6, .Q = 4, .first = -1, .dt_min = 0.2, .dt_max = 0.5}, DType::f64);
  c.dt_bias.fill(0);
  c.dt_raw.fill({-5, 5, -0.8, -0.9, 3, -4});  // softplus: .007, 5.007, .37, .34, 3.05, .018
  c.forward(), c.backward();
  EXPECT_EQ(c.dt.get(0), 0.2);
  EXPECT_EQ(c.dt.get(1), 0.5);
  for (const int64_t t : {0, 1, 4, 5}) EXPECT_EQ(c.ddt_raw.get(t), 0);
  for (const int64_t t : {2, 3}) EXPECT_NE(c.ddt_raw.get(t), 0);
}

}  // namespace
}  // namespace sluice::test
