#include "layers/ffn/moe.h"

#include "tests/support/layer_check.h"

namespace sluice::test {
namespace {

MakeLayer moe(const MoeConfig& config) {
  return [config](const LayerBuild& build) { return std::make_unique<Moe>(build, config); };
}

MoeConfig small() {
  MoeConfig config;
  config.experts = 5;
  config.top_k = 2;
  config.hidden = 4;
  config.aux_loss = 0.3;
  config.z_loss = 0.2;
  return config;
}

TEST(Moe, SoftmaxDropless) { check_layer(moe(small()), 6); }

TEST(Moe, RenormalisedWithSharedExpert) {
  MoeConfig config = small();
  config.renormalise = true;
  config.shared_hidden = 3;
  config.activation = Activation::relu2;
  check_layer(moe(config), 6);
}

TEST(Moe, SigmoidWithGroupsAndBias) {
  MoeConfig config = small();
  config.experts = 6;
  config.score = RouterScore::sigmoid;
  config.renormalise = true;
  config.scale = 2.5;
  config.groups = 3;
  config.topk_group = 2;
  config.bias_rate = 0.01;
  check_layer(moe(config), 6);
}

TEST(Moe, CapacityDropsTheLaterTokens) {
  MoeConfig config = small();
  config.capacity_factor = 0.5;
  const TestRows rows(2, 13);
  check_layer_gradients(moe(config), rows, 6);
  check_layer_accumulates(moe(config), rows, 6);
  // Against the dropless layer: the first token of a row always keeps its experts, a late one does
  // not.
  const Tensor x = normal({2, 13, 6}, DType::f64, 1);
  Tensor dropped({2, 13, 6}, DType::f64), whole({2, 13, 6}, DType::f64);
  for (Tensor* y : {&dropped, &whole}) {
    LayerHarness h(moe(config), 6, DType::f64);
    const ArenaScope saved(h.ctx.saved());
    h.layer->forward(h.ctx, rows, {.x = x, .y = *y});
    config.capacity_factor = 0;
  }
  int64_t first_difference = 13;
  for (int64_t i = 0; i < 13 * 6; ++i) {
    if (dropped.get(i) != whole.get(i)) first_difference = std::min(first_difference, i / 6);
  }
  EXPECT_GT(first_difference, 0);
  EXPECT_LT(first_difference, 13);
}

TEST(Moe, BiasMovesAgainstTheLoad) {
  MoeConfig config = small();
  config.bias_rate = 0.5;
  LayerHarness h(moe(config), 6, DType::f64);
  const ParameterId bias = h.store.find("branches.0.layer.router.bias");
  const Tensor before = h.parameter(bias.index, false);
  StepStatistics statistics;
  statistics.expert_counts[0] = {10, 2, 4, 0, 4};
  h.layer->end_step(h.ctx, statistics);
  const Tensor after = h.parameter(bias.index, false);
  const std::vector<double> expected = {-0.5, 0.5, 0, 0.5, 0};
  for (int64_t e = 0; e < 5; ++e) EXPECT_NEAR(after.get(e) - before.get(e), expected[e], 1e-15);
}

TEST(Moe, StatisticsAreMeansOverTheStepsRows) {
  MoeConfig config = small();
  LayerHarness h(moe(config), 6, DType::f64);
  TestRows rows(2, 13);
  const Tensor x = normal({2, 13, 6}, DType::f64, 1);
  Tensor y({2, 13, 6}, DType::f64);
  const auto of_step = [&](int64_t step_rows) {
    const ArenaScope saved(h.ctx.saved());
    const StatisticsBuffer statistics({{0, config.experts}});
    rows.rows().step_rows = step_rows;
    h.layer->forward(h.ctx, rows, {.x = x, .y = y, .statistics = &statistics.sink()});
    return statistics.read(h.ctx);
  };
  StepStatistics one = of_step(2), four = of_step(8);
  EXPECT_GT(one.balance_loss, 0);
  EXPECT_NEAR(one.balance_loss, 4 * four.balance_loss, 1e-12);
  EXPECT_NEAR(one.z_loss, 4 * four.z_loss, 1e-12);
  double choices = 0;
  for (const double count : one.expert_counts[0]) choices += count;
  EXPECT_EQ(choices, 2 * 13 * 2);
}

}  // namespace
}  // namespace sluice::test
