#include "layers/model_config.h"

#include <gtest/gtest.h>

namespace sluice::test {
namespace {

std::string letters(const ModelConfig& config) { return stack_letters(resolve_stack(config)); }

TEST(Stack, Pattern) {
  ModelConfig config;
  config.stack.pattern = "M-M-|M*-MEM-";
  EXPECT_EQ(letters(config), "M-M-M*-MEM-");  // a foreign pipeline boundary means nothing here
}

TEST(Stack, JambasWay) {
  ModelConfig config;
  config.stack.layers = 8;
  config.stack.mixer = "mamba";
  config.stack.attention.period = 8;
  config.stack.attention.offset = 4;
  config.stack.ffn = "mlp";
  config.stack.moe.period = 2;
  config.stack.moe.offset = 1;
  EXPECT_EQ(letters(config), "S-SES-SE*-SES-SE");
}

// By ratio: round(n * ratio) attention layers, others on both sides of each.
TEST(Stack, RatioIsSpreadEvenly) {
  ModelConfig config;
  config.stack.layers = 8;
  config.stack.attention.ratio = 0.125;
  EXPECT_EQ(letters(config), "MMMM*MMM");
  config.stack.attention.ratio = 0.25;
  EXPECT_EQ(letters(config), "MM*MM*MM");
  config.stack.attention.ratio = 0;
  EXPECT_EQ(letters(config), "MMMMMMMM");
  config.stack.attention.ratio = 1;
  EXPECT_EQ(letters(config), "********");
}

TEST(Stack, ExplicitBranchesKeepTheirOverrides) {
  ModelConfig config;
  Mamba2Config small;
  small.state_dim = 64;
  config.stack.branches = {{small}, {MlpConfig{}}};
  const auto branches = resolve_stack(config);
  EXPECT_EQ(std::get<Mamba2Config>(branches[0].config).state_dim, 64);
  EXPECT_STREQ(branches[1].kind(), "mlp");
}

std::string message_of(const ModelConfig& config) {
  try {
    config.validate();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Stack, MistakesAreNamed) {
  ModelConfig config;
  EXPECT_NE(message_of(config).find("exactly one of pattern, layers or branches"),
            std::string::npos);
  config.stack.pattern = "M-G";
  EXPECT_NE(message_of(config).find("'G' in column 3"), std::string::npos);
  config.stack.layers = 2;
  EXPECT_NE(message_of(config).find("got 2"), std::string::npos);
  config.stack.pattern.clear();
  config.stack.mixer = "mamba3";
  EXPECT_NE(message_of(config).find("mamba2, mamba, attention"), std::string::npos);
  config.stack.mixer = "mamba2";
  config.stack.attention.period = 4;
  config.stack.attention.offset = 4;
  EXPECT_NE(message_of(config).find("below period"), std::string::npos);
  config.stack.attention.offset = 0;
  std::get<AttentionConfig>(config.sections).heads = 7;
  EXPECT_NE(message_of(config).find("heads 7 does not divide d_model 768"), std::string::npos);
}

}  // namespace
}  // namespace sluice::test
