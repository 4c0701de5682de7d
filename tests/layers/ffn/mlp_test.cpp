#include "layers/ffn/mlp.h"

#include "tests/support/layer_check.h"

namespace sluice::test {
namespace {

MakeLayer mlp(const MlpConfig& config) {
  return [config](const LayerBuild& build) { return std::make_unique<Mlp>(build, config); };
}

TEST(Mlp, Swiglu) { check_layer(mlp({.hidden = 7}), 5); }
TEST(Mlp, SquaredRelu) { check_layer(mlp({.hidden = 7, .activation = Activation::relu2}), 5); }
TEST(Mlp, GeluWithBiases) {
  check_layer(mlp({.hidden = 7, .activation = Activation::gelu, .bias = true}), 5);
}

}  // namespace
}  // namespace sluice::test
