#include "layers/mixers/mamba2.h"

#include "tests/support/layer_check.h"

namespace sluice::test {
namespace {

MakeLayer mamba2(const Mamba2Config& config) {
  return [config](const LayerBuild& build) { return std::make_unique<Mamba2>(build, config); };
}

const Mamba2Config kSmall{.head_dim = 4, .state_dim = 3, .groups = 1, .conv_width = 4, .chunk = 4};

TEST(Mamba2, Default) { check_layer(mamba2(kSmall), 6); }

TEST(Mamba2, GroupsGateAfterAndBiases) {
  Mamba2Config config = kSmall;
  config.groups = 3;
  config.gate = GateOrder::after;
  config.proj_bias = true;
  config.conv_bias = false;
  check_layer(mamba2(config), 6);
}

TEST(Mamba2, HeadsOfTheirOwnAndClampedSteps) {
  Mamba2Config config = kSmall;
  config.heads = 2;
  config.conv_width = 2;
  config.chunk = 5;
  config.dt_min = 0.02;
  config.dt_max = 0.2;
  check_layer(mamba2(config), 5);
}

TEST(Mamba2, ChunkLengthDoesNotMatter) {
  const TestRows rows(2, 23, {{8, 9}, {16}});
  const Tensor x = normal({2, 23, 8}, DType::f64, 3);
  std::vector<Tensor> outputs;
  for (const int64_t chunk : {1, 4, 8, 64}) {
    Mamba2Config config = kSmall;
    config.chunk = chunk;
    LayerHarness h(mamba2(config), 8, DType::f64);
    outputs.emplace_back(Dims{2, 23, 8}, DType::f64);
    const ArenaScope saved(h.ctx.saved());
    h.layer->forward(h.ctx, rows, {.x = x, .y = outputs.back()});
    EXPECT_LE(relative_error(outputs.back(), outputs.front()), 1e-12);
  }
}

TEST(Mamba2, RefusesWhatDoesNotFit) {
  Mamba2Config config = kSmall;
  config.head_dim = 5;
  EXPECT_THROW(config.validate("model.mamba2", 6), UsageError);
  config = kSmall;
  config.groups = 2;
  EXPECT_THROW(config.validate("model.mamba2", 6), UsageError);
}

}  // namespace
}  // namespace sluice::test
