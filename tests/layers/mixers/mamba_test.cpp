#include "layers/mixers/mamba.h"

#include "tests/support/layer_check.h"

namespace sluice::test {
namespace {

MakeLayer mamba(const MambaConfig& config) {
  return [config](const LayerBuild& build) { return std::make_unique<Mamba>(build, config); };
}

const MambaConfig kSmall{.state_dim = 3, .conv_width = 4, .expand = 2, .inner = 0, .dt_rank = 2};

TEST(Mamba, Default) { check_layer(mamba(kSmall), 6); }

TEST(Mamba, LearnedInnerNorms) {
  MambaConfig config = kSmall;
  config.inner_norm = InnerNorm::learned;
  config.proj_bias = true;
  check_layer(mamba(config), 5);
}

TEST(Mamba, PlainInnerNormsAndInnerWidth) {
  MambaConfig config = kSmall;
  config.inner_norm = InnerNorm::plain;
  config.inner = 7;
  config.conv_bias = false;
  config.conv_width = 2;
  check_layer(mamba(config), 5);
}

}  // namespace
}  // namespace sluice::test
