#include "layers/mixers/attention.h"

#include "tests/support/layer_check.h"

namespace sluice::test {
namespace {

MakeLayer attention(const AttentionConfig& config) {
  return [config](const LayerBuild& build) { return std::make_unique<Attention>(build, config); };
}

AttentionConfig small() {
  AttentionConfig config;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  return config;
}

TEST(Attention, GroupedQueriesWithRope) { check_layer(attention(small()), 6); }

TEST(Attention, WindowPartialRopeAndBiases) {
  AttentionConfig config = small();
  config.window = 3;
  config.rope.fraction = 0.5;
  config.bias = true;
  check_layer(attention(config), 5);
}

TEST(Attention, NoPositionsOneHeadEach) {
  AttentionConfig config = small();
  config.kv_heads = 0;
  config.head_dim = 0;
  config.rope.fraction = 0;
  check_layer(attention(config), 8);
}

TEST(Attention, RefusesWhatDoesNotFit) {
  AttentionConfig config = small();
  config.kv_heads = 3;
  EXPECT_THROW(config.validate("model.attention", 8), UsageError);
  config = small();
  config.rope.fraction = 0.25;  // one column
  EXPECT_THROW(config.validate("model.attention", 8), UsageError);
  config = small();
  config.head_dim = 0;
  EXPECT_THROW(config.validate("model.attention", 6), UsageError);
}

}  // namespace
}  // namespace sluice::test
