#include "kernels/topk_router/topk_router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

#include "kernels/core/threads.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

double logit(double p) { return std::log(p / (1 - p)); }

// One token, with logits given by their exponentials or sigmoids.
struct OneToken {
  OneToken(const std::vector<double>& values, const RouterOptions& options)
      : logits({1, 1, int64_t(values.size())}, DType::f64),
        bias({int64_t(values.size())}, DType::f64),
        experts({1, 1, options.top_k}, DType::i32),
        weights({1, 1, options.top_k}, DType::f64),
        options(options) {
    logits.fill(values);
    bias.fill(0);
  }
  void route() {
    topk_router_forward(ctx, {.logits = logits,
                              .bias = bias,
                              .experts = experts,
                              .weights = weights,
                              .options = options});
  }
  TestContext ctx;
  Tensor logits, bias, experts, weights;
  RouterOptions options;
};

TEST(TopkRouter, SoftmaxHandComputed) {
  OneToken token({std::log(1.0), std::log(5.0), std::log(2.0), std::log(2.0)}, {.top_k = 2});
  token.route();  // p = 1/10, 5/10, 2/10, 2/10; the tie goes to expert 2
  EXPECT_EQ(token.experts.values(), (std::vector<double>{1, 2}));
  EXPECT_NEAR(token.weights.get(0), 0.5, 1e-15);
  EXPECT_NEAR(token.weights.get(1), 0.2, 1e-15);
  token.options.renormalise = true;
  token.route();
  EXPECT_NEAR(token.weights.get(0), 5.0 / 7, 1e-15);
  EXPECT_NEAR(token.weights.get(1), 2.0 / 7, 1e-15);
}

TEST(TopkRouter, WeighsAChoiceThatWasMadeElsewhere) {
  OneToken token({std::log(1.0), std::log(5.0), std::log(2.0), std::log(2.0)}, {.top_k = 2});
  const auto weigh = [&](const std::vector<double>& experts) {
    token.experts.fill(experts);
    topk_router_forward(token.ctx, {.logits = token.logits,
                                    .experts = token.experts,
                                    .weights = token.weights,
                                    .options = token.options,
                                    .chosen = true});
  };
  weigh({0, 3});
  EXPECT_EQ(token.experts.values(), (std::vector<double>{0, 3}));
  EXPECT_NEAR(token.weights.get(0), 0.1, 1e-15);
  EXPECT_NEAR(token.weights.get(1), 0.2, 1e-15);
  EXPECT_THROW(weigh({0, 4}), Error);
  EXPECT_THROW(weigh({-1, 0}), Error);
}

TEST(TopkRouter, SigmoidWithBiasHandComputed) {
  OneToken token({logit(0.5), logit(0.4), logit(0.3)},
                 {.score = RouterScore::sigmoid, .top_k = 2, .renormalise = true, .scale = 2.5});
  token.bias.fill({0, 0, 0.15});
  token.route();  // choice 0.5, 0.4, 0.45: experts 0 and 2, with weights free of the bias
  EXPECT_EQ(token.experts.values(), (std::vector<double>{0, 2}));
  EXPECT_NEAR(token.weights.get(0), 2.5 * 0.5 / 0.8, 1e-15);
  EXPECT_NEAR(token.weights.get(1), 2.5 * 0.3 / 0.8, 1e-15);
}

TEST(TopkRouter, ChoosesWithinTheBestGroups) {
  // Groups {0, 1}, {2, 3}, {4, 5} with sums 0.95, 1.0, 1.05: the best expert's group is the worst.
  OneToken token({logit(0.9), logit(0.05), logit(0.5), logit(0.5), logit(0.45), logit(0.6)},
                 {.score = RouterScore::sigmoid, .top_k = 3, .num_groups = 3, .topk_group = 2});
  token.route();
  EXPECT_EQ(token.experts.values(), (std::vector<double>{5, 2, 3}));
  token.options.top_k = 1;
  Tensor experts({1, 1, 1}, DType::i32), weights({1, 1, 1}, DType::f64);
  token.experts = std::move(experts), token.weights = std::move(weights);
  token.options.topk_group = 1;
  token.bias.fill({0.2, 0, 0, 0, 0, 0});  // lifts the first group's sum to 1.15
  token.route();
  EXPECT_EQ(token.experts.get(0), 0);
  EXPECT_NEAR(token.weights.get(0), 0.9, 1e-15);
}

TEST(TopkRouter, EqualScoresGoToTheLowerExpert) {
  OneToken token({1, 1, 1, 1, 1}, {.top_k = 3});
  token.route();
  EXPECT_EQ(token.experts.values(), (std::vector<double>{0, 1, 2}));
}

TEST(TopkRouter, NansStillNameDistinctExperts) {
  OneToken token({0, std::nan(""), 2, 1}, {.score = RouterScore::sigmoid, .top_k = 4});
  token.route();
  const std::vector<double> chosen = token.experts.values();
  EXPECT_EQ(std::set<double>(chosen.begin(), chosen.end()), (std::set<double>{0, 1, 2, 3}));
}

struct Setup {
  RouterOptions options = {};
  int64_t B = 1, T = 1, X = 1;
  bool biased = false;
};

struct Case {
  Case(const Setup& s, DType dtype, int64_t padding = 0)
      : s(s),
        logits({s.B, s.T, s.X}, dtype, padding),
        bias({s.X}, dtype),
        experts({s.B, s.T, s.options.top_k}, DType::i32, padding),
        weights({s.B, s.T, s.options.top_k}, dtype),
        dweights({s.B, s.T, s.options.top_k}, dtype, padding),
        dlogits({s.B, s.T, s.X}, dtype, 2 * padding),
        counts({s.B, s.X}, dtype),
        mass({s.B, s.X}, dtype),
        z({s.B}, dtype) {
    logits.fill_normal(1);
    bias.fill_normal(2, s.biased ? 0.1 : 0);
    dweights.fill_normal(3);
  }
  void forward() {
    topk_router_forward(ctx, {.logits = logits,
                              .bias = s.biased ? ConstTensorView(bias) : ConstTensorView{},
                              .experts = experts,
                              .weights = weights,
                              .options = s.options});
  }
  void backward() {
    topk_router_backward(ctx, {.dweights = dweights,
                               .logits = logits,
                               .experts = experts,
                               .dlogits = dlogits,
                               .options = s.options});
  }
  void statistics() {
    router_statistics(ctx, {.logits = logits,
                            .experts = experts,
                            .counts = counts,
                            .mass = mass,
                            .z = z,
                            .options = s.options});
  }
  void loss_backward() {
    router_loss_backward(ctx, {.logits = logits,
                               .counts = counts,
                               .dlogits = dlogits,
                               .row_tokens = s.T,
                               .balance_scale = kBalance,
                               .z_scale = kZ,
                               .options = s.options});
  }
  // From the statistics, by the formulas of the header.
  double losses() const {
    double sum = 0;
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t e = 0; e < s.X; ++e) {
        const double f = counts.get(b * s.X + e) / double(s.T * s.options.top_k);
        sum += kBalance * double(s.X) * f * mass.get(b * s.X + e) / double(s.T);
      }
      sum += kZ * z.get(b) / double(s.T);
    }
    return sum;
  }
  static constexpr double kBalance = 0.7;
  static constexpr double kZ = 0.3;
  Setup s;
  TestContext ctx;
  Tensor logits, bias, experts, weights, dweights, dlogits, counts, mass, z;
};

class TopkRouterSetups : public testing::TestWithParam<Setup> {};

TEST_P(TopkRouterSetups, GradientMatchesCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.forward(), c.backward();
  check_gradients(
      [&] {
        c.forward();
        return weighted_sum({&c.weights}, {&c.dweights});
      },
      {{"logits", &c.logits, &c.dlogits}});
}

TEST_P(TopkRouterSetups, LossGradientMatchesCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.forward();
  c.statistics();
  c.dlogits.fill(0);
  c.loss_backward();
  check_gradients(
      [&] {
        c.statistics();  // the choice, and so f, stays
        return c.losses();
      },
      {{"logits", &c.logits, &c.dlogits}});
  const Tensor once = c.dlogits.clone();
  c.loss_backward();  // adds
  for (int64_t i = 0; i < once.numel(); ++i) {
    EXPECT_NEAR(c.dlogits.get(i), 2 * once.get(i), 1e-14);
  }
}

TEST_P(TopkRouterSetups, CountsAndMassAddUp) {
  Case c(GetParam(), DType::f64);
  c.forward();
  c.statistics();
  for (int64_t b = 0; b < c.s.B; ++b) {
    double counts = 0, mass = 0;
    for (int64_t e = 0; e < c.s.X; ++e) {
      counts += c.counts.get(b * c.s.X + e);
      mass += c.mass.get(b * c.s.X + e);
    }
    EXPECT_EQ(counts, c.s.T * c.s.options.top_k);
    EXPECT_NEAR(mass, c.s.T, 1e-12 * c.s.T);
  }
}

TEST_P(TopkRouterSetups, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f64);
  for (Case* c : {&a, &b}) {
    c->forward(), c->backward(), c->statistics(), c->loss_backward();
  }
  ASSERT_TRUE(bit_equal(a.experts, b.experts));
  EXPECT_TRUE(bit_equal(a.counts, b.counts));
  const double bound = tolerance(DType::f32, GetParam().X);
  EXPECT_LE(relative_error(a.weights, b.weights), bound);
  EXPECT_LE(relative_error(a.mass, b.mass), bound);
  EXPECT_LE(relative_error(a.z, b.z), bound);
  EXPECT_LE(relative_error(a.dlogits, b.dlogits), bound);
}

TEST_P(TopkRouterSetups, BitEqualUnderAnyThreadCount) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f32);
  const int threads = num_threads();
  set_num_threads(1);
  a.forward(), a.backward(), a.statistics(), a.loss_backward();
  set_num_threads(2);
  b.forward(), b.backward(), b.statistics(), b.loss_backward();
  set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.experts, b.experts) && bit_equal(a.weights, b.weights));
  EXPECT_TRUE(bit_equal(a.mass, b.mass) && bit_equal(a.z, b.z) && bit_equal(a.dlogits, b.dlogits));
}

constexpr RouterScore kSigmoid = RouterScore::sigmoid;
INSTANTIATE_TEST_SUITE_P(
    Setups, TopkRouterSetups,
    testing::Values(Setup{}, Setup{.options = {.top_k = 2}, .B = 2, .T = 37, .X = 7},
                    Setup{.options = {.top_k = 3, .renormalise = true}, .B = 3, .T = 11, .X = 5},
                    Setup{.options = {.top_k = 5, .renormalise = true}, .B = 1, .T = 3, .X = 5},
                    Setup{.options = {.score = kSigmoid, .top_k = 1}, .B = 1, .T = 13, .X = 3},
                    Setup{.options = {.score = kSigmoid, .top_k = 2, .scale = 1.5},
                          .B = 2,
                          .T = 7,
                          .X = 6,
                          .biased = true},
                    Setup{.options = {.score = kSigmoid,
                                      .top_k = 3,
                                      .renormalise = true,
                                      .scale = 2.5,
                                      .num_groups = 4,
                                      .topk_group = 2},
                          .B = 2,
                          .T = 41,
                          .X = 12,
                          .biased = true}));

TEST(TopkRouter, BalanceIsOneWhenEven) {
  // Uniform scores and equal counts: X * sum (1/X)(1/X) = 1.
  Case c({.options = {.top_k = 1}, .B = 1, .T = 4, .X = 4}, DType::f64);
  c.logits.fill(0);
  c.experts.fill({0, 1, 2, 3});
  c.statistics();
  c.z.fill(0);
  EXPECT_NEAR(c.losses(), Case::kBalance, 1e-15);
}

TEST(TopkRouter, NamesAndRefusals) {
  EXPECT_EQ(std::string(enum_names(kSigmoid)[int(kSigmoid)]), "sigmoid");
  const auto route = [](const RouterOptions& options) {
    OneToken token({1, 2, 3, 4}, options);
    token.route();
  };
  EXPECT_NO_THROW(route({.top_k = 4}));
  EXPECT_THROW(route({.top_k = 5}), Error);
  EXPECT_THROW(route({.top_k = 0}), Error);
  EXPECT_THROW(route({.num_groups = 3}), Error);
  EXPECT_THROW(route({.num_groups = 2, .topk_group = 3}), Error);
  EXPECT_THROW(route({.top_k = 3, .num_groups = 2, .topk_group = 1}), Error);
  OneToken token({1, 2, 3}, {.top_k = 2});
  token.options.top_k = 1;
  EXPECT_THROW(token.route(), Error);
}

}  // namespace
}  // namespace sluice::test
