// The fold of affine maps, and its reverse, each with and without the states between.
// B batch, M chunks (or ranks), H heads, P head dim, N state dim
#include "kernels/state_passing/state_passing.h"

#include <gtest/gtest.h>

#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

struct Case {
  Case(int64_t B, int64_t M, int64_t H, int64_t P, int64_t N, DType dtype)
      : state(normal({B, M, H, P, N}, dtype, 1)),
        decay(normal({B, M, H}, dtype, 2, 0.1, 0.9)),
        initial(normal({B, H, P, N}, dtype, 3)),
        dincoming(normal({B, M, H, P, N}, dtype, 4)),
        dfinal(normal({B, H, P, N}, dtype, 5)),
        incoming({B, M, H, P, N}, dtype),
        final({B, H, P, N}, dtype),
        total({B, H}, dtype),
        doutgoing({B, M, H, P, N}, dtype),
        dlog_decay({B, M, H}, dtype),
        dinitial({B, H, P, N}, dtype) {
    if (M > 2) {
      for (int64_t h = 0; h < H; ++h) decay.set(H + h, 0);  // a document starts in chunk 1
    }
  }
  void forward() {
    state_passing_forward(ctx, {.state = state,
                                .decay = decay,
                                .initial = initial,
                                .incoming = incoming,
                                .final_state = final,
                                .total_decay = total});
  }
  void backward() {
    state_passing_backward(ctx, {.dincoming = dincoming,
                                 .incoming = incoming,
                                 .decay = decay,
                                 .dfinal = dfinal,
                                 .doutgoing = doutgoing,
                                 .dlog_decay = dlog_decay,
                                 .dinitial = dinitial});
  }
  TestContext ctx;
  Tensor state, decay, initial, dincoming, dfinal;
  Tensor incoming, final, total, doutgoing, dlog_decay, dinitial;
};

TEST(StatePassing, HandComputed) {
  Case c(1, 2, 1, 1, 1, DType::f64);
  c.state.fill({3, 5}), c.decay.fill({0.5, 0.25}), c.initial.fill(8);
  c.dincoming.fill({1, 2}), c.dfinal.fill(4);
  c.forward(), c.backward();
  EXPECT_EQ(c.incoming.values(), (std::vector<double>{8, 7}));
  EXPECT_EQ(c.final.get(0), 6.75);
  EXPECT_EQ(c.total.get(0), 0.125);
  EXPECT_EQ(c.doutgoing.values(), (std::vector<double>{3, 4}));  // 2 + 4 / 4, dfinal
  EXPECT_EQ(c.dinitial.get(0), 2.5);                             // 1 + 3 / 2
  EXPECT_EQ(c.dlog_decay.values(), (std::vector<double>{0.5 * 3 * 8, 0.25 * 4 * 7}));
}

TEST(StatePassing, FoldsAloneGiveTheSameBits) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const int64_t M : {1, 3, 7}) {
      Case c(2, M, 3, 2, 5, dtype);
      c.forward(), c.backward();
      Tensor final(c.final.dims(), dtype), total(c.total.dims(), dtype);
      Tensor dinitial(c.dinitial.dims(), dtype);
      state_passing_forward(c.ctx, {.state = c.state,
                                    .decay = c.decay,
                                    .initial = c.initial,
                                    .final_state = final,
                                    .total_decay = total});
      state_passing_backward(
          c.ctx,
          {.dincoming = c.dincoming, .decay = c.decay, .dfinal = c.dfinal, .dinitial = dinitial});
      EXPECT_TRUE(bit_equal(final, c.final) && bit_equal(total, c.total));
      EXPECT_TRUE(bit_equal(dinitial, c.dinitial));
      // A decay of 0 lets nothing pass.
      EXPECT_TRUE(M < 3 || total.get(0) == 0);
    }
  }
}

TEST(StatePassing, GradientsMatchCentralDifferences) {
  Case c(2, 4, 3, 2, 3, DType::f64);
  c.forward(), c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.incoming, &c.final}, {&c.dincoming, &c.dfinal});
  };
  Tensor ddecay = c.dlog_decay.clone();
  for (int64_t i = 0; i < ddecay.numel(); ++i) {
    ddecay.set(i, c.decay.get(i) == 0 ? 0 : c.dlog_decay.get(i) / c.decay.get(i));
  }
  check_gradients(loss, {{"initial", &c.initial, &c.dinitial}, {"state", &c.state, &c.doutgoing}});
  // The decay of a reset is no parameter.
  for (int64_t i = 0; i < c.decay.numel(); ++i) {
    if (c.decay.get(i) == 0) continue;
    const double before = c.decay.get(i);
    c.decay.set(i, before + 1e-5);
    const double above = loss();
    c.decay.set(i, before - 1e-5);
    EXPECT_NEAR((above - loss()) / 2e-5, ddecay.get(i), 1e-6);
    c.decay.set(i, before);
  }
}

// One message a rank, as an exchange gathers them: states, then decays, in strided rows.
TEST(StatePassing, ReadsTheMessagesOfRanksInPlace) {
  const int64_t ranks = 3, maps = 4, P = 2, N = 3, width = maps * (P * N + 1);
  Case c(1, ranks, maps, P, N, DType::f64);
  Tensor messages({1, ranks, width}, DType::f64);
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t i = 0; i < maps * P * N; ++i) {
      messages.set(r * width + i, c.state.get(r * maps * P * N + i));
    }
    for (int64_t h = 0; h < maps; ++h) {
      messages.set(r * width + maps * P * N + h, c.decay.get(r * maps + h));
    }
  }
  c.forward();
  Tensor final(c.final.dims(), DType::f64);
  state_passing_forward(c.ctx, {.state = messages.view().columns(0, {maps, P, N}),
                                .decay = messages.view().columns(maps * P * N, {maps}),
                                .initial = c.initial,
                                .final_state = final});
  EXPECT_TRUE(bit_equal(final, c.final));
}

TEST(StatePassing, RefusesWhatDoesNotFit) {
  Case c(1, 2, 1, 2, 2, DType::f32);
  EXPECT_THROW(state_passing_forward(c.ctx, {.state = c.state, .decay = c.decay}), Error);
  EXPECT_THROW(
      state_passing_forward(c.ctx, {.state = c.state, .decay = c.total, .final_state = c.final}),
      Error);
  EXPECT_THROW(state_passing_backward(c.ctx, {.dincoming = c.dincoming, .decay = c.decay}), Error);
  EXPECT_THROW(state_passing_backward(c.ctx, {.dincoming = c.dincoming,
                                              .decay = c.decay,
                                              .dlog_decay = c.dlog_decay,
                                              .dinitial = c.dinitial}),
               Error);
}

}  // namespace
}  // namespace sluice::test
