// The whole configuration: sections, branches, notations, what is written and read back.
#include "trainer/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "tests/support/temp_folder.h"

namespace sluice::test {
namespace {

class WholeConfig : public testing::Test {
 protected:
  LoadedConfig load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load_config(temp_.write("run.yaml", text), overrides);
  }
  std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
    try {
      load(text, overrides);
    } catch (const UsageError& error) {
      std::string message = error.what();
      const std::string folder = temp_.path() + "/";
      if (message.starts_with(folder)) message.erase(0, folder.size());
      return message;
    }
    return "no error";
  }
  TempFolder temp_;
};

const std::string kTiny = "model: {d_model: 32, stack: {pattern: M-}}\n";

TEST_F(WholeConfig, EveryDocumentedKey) {
  const Config c = load(R"(
name: hybrid-130m
seed: 1
device: auto
precision: f32
model:
  d_model: 768
  vocab_size: 50288
  stack: {pattern: "M-M-M*M-MEM-"}
  mamba2:    {head_dim: 64, state_dim: 128, groups: 1, conv_width: 4, chunk: 128}
  attention: {heads: 12, kv_heads: 4, rope: {theta: 10000}}
  mlp:       {hidden: 2048, activation: swiglu}
  moe:       {experts: 8, top_k: 2, hidden: 2048, aux_loss: 0.01, z_loss: 0.001}
data:
  train: stores/text.h5
  valid: stores/text-valid.h5
train:
  steps: 1000
  seq_len: 2048
  global_batch: 64
  micro_batch: 4
  recompute: none
  eval_every: 200
optimizer: {type: adamw, lr: 6.0e-4, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, clip: 1.0}
schedule: {type: cosine, warmup: 100, final: 0.1}
parallel: {dp: auto, ep: 1, cp: 1, zero: 1}
checkpoint: {every: 200, keep: 3}
log: {every: 1, tensorboard: true}
)")
                       .config;
  EXPECT_EQ(c.name, "hybrid-130m");
  EXPECT_EQ(c.model.vocab_size, 50288);
  EXPECT_EQ(c.model.stack.pattern, "M-M-M*M-MEM-");
  EXPECT_EQ(std::get<AttentionConfig>(c.model.sections).kv_heads, 4);
  ASSERT_EQ(c.data.train.size(), 1u);
  EXPECT_EQ(c.data.train[0].path, "stores/text.h5");
  EXPECT_EQ(c.optimizer.eps, 1e-8);
  EXPECT_FALSE(c.parallel.dp.has_value());
}

TEST_F(WholeConfig, WeightedStores) {
  const Config c = load(kTiny + "data: {train: [{path: a.h5, weight: 3}, b.h5]}\n").config;
  ASSERT_EQ(c.data.train.size(), 2u);
  EXPECT_EQ(c.data.train[0].weight, 3);
  EXPECT_EQ(c.data.train[1].path, "b.h5");
  EXPECT_EQ(c.data.train[1].weight, 1);
}

TEST_F(WholeConfig, BranchesAreTheirSectionWithOverrides) {
  const Config c = load(
                       "model:\n  d_model: 32\n  mamba2: {head_dim: 16, state_dim: 32}\n"
                       "  attention: {heads: 2}\n  stack:\n    branches:\n"
                       "      - {type: mamba2, state_dim: 64}\n      - {type: mlp}\n"
                       "      - {type: attention, window: 2048}\n")
                       .config;
  ASSERT_EQ(c.model.stack.branches.size(), 3u);
  const auto& mamba2 = std::get<Mamba2Config>(c.model.stack.branches[0].config);
  EXPECT_EQ(mamba2.head_dim, 16);  // of the section
  EXPECT_EQ(mamba2.state_dim, 64);
  EXPECT_EQ(std::get<MlpConfig>(c.model.stack.branches[1].config).hidden, MlpConfig{}.hidden);
  EXPECT_EQ(std::get<AttentionConfig>(c.model.stack.branches[2].config).window, 2048);
}

TEST_F(WholeConfig, ResolvedYamlReadsBackInEveryNotation) {
  const std::string head = "model:\n  d_model: 32\n  attention: {heads: 2}\n  stack: ";
  for (const char* stack :
       {"{pattern: '*-M'}", "{layers: 4, ffn: mlp, attention: {period: 2, offset: 1}}",
        "{layers: 4, attention: {ratio: 0.25}}", "{branches: [{type: mlp, hidden: 8}]}"}) {
    const Config config = load(head + stack + "\n").config;
    const std::string yaml = resolved_yaml(config);
    EXPECT_EQ(resolved_yaml(parse_config("again", yaml)), yaml) << stack;
    EXPECT_EQ(yaml.find("null"), std::string::npos) << yaml;
  }
}

TEST_F(WholeConfig, ResolvedYamlHasEachKeyOnItsLine) {
  const std::string yaml = resolved_yaml(load(kTiny, {"train.seq_len=128"}).config);
  EXPECT_NE(yaml.find("\n  seq_len: 128\n"), std::string::npos);
  EXPECT_NE(yaml.find("\n  dp: auto\n"), std::string::npos);
  EXPECT_NE(yaml.find("\n  stack:\n    pattern: M-\n"), std::string::npos) << yaml;
}

TEST_F(WholeConfig, NamesBranchMistakes) {
  const std::string head = "model:\n  stack:\n    branches:\n      - ";
  EXPECT_EQ(error_of(head + "{type: mamba3}\n"),
            "run.yaml:4:16: model.stack.branches[0].type: no kind of branch 'mamba3'; did you mean "
            "'mamba2'?\n        - {type: mamba3}\n                 ^\n"
            "  kinds: mamba2, mamba, attention, mlp, moe");
  EXPECT_EQ(error_of(head + "mlp\n").substr(0, 70),
            "run.yaml:4:9: model.stack.branches[0]: expected {type: KIND, ...}, got");
  const std::string unknown = error_of(head + "{type: mlp, hiden: 3}\n");
  EXPECT_EQ(
      unknown.substr(0, unknown.find('\n')),
      "run.yaml:4:21: unknown key 'hiden' in model.stack.branches[0]; did you mean 'hidden'?");
}

TEST_F(WholeConfig, CrossChecks) {
  const auto first_line = [](const std::string& text) { return text.substr(0, text.find('\n')); };
  EXPECT_EQ(first_line(error_of(kTiny + "train: {global_batch: 6, micro_batch: 4}\n")),
            "run.yaml:2:9: train.global_batch: expected a multiple of train.micro_batch, got 6 and "
            "4");
  EXPECT_EQ(first_line(error_of(kTiny + "optimizer: {betas: [0.9, 1]}\n")),
            "run.yaml:2:26: optimizer.betas[1]: expected a number below 1, got 1");
  EXPECT_EQ(first_line(error_of(kTiny, {"optimizer.eps=0"})),
            "command line: optimizer.eps: expected a number above 0, as 1e-8, got 0");
  EXPECT_EQ(first_line(error_of(kTiny, {"parallel.dp=4", "parallel.ep=3"})),
            "command line: parallel.ep: expected a divisor of parallel.dp = 4, got 3");
  EXPECT_EQ(first_line(error_of(kTiny, {"parallel.dp=32"})),
            "command line: parallel.dp: expected a divisor of train.global_batch / "
            "train.micro_batch = 16, got 32");
  EXPECT_EQ(first_line(error_of(kTiny + "name: ../up\n")),
            "run.yaml:2:1: name: expected a relative name for the run folder, got '../up'");
  EXPECT_EQ(
      first_line(error_of(kTiny + "data: {train: [{path: a, weight: 0}]}\n")),
      "run.yaml:2:26: data.train[0].weight: expected a weight above 0, or leave the store out");
}

TEST_F(WholeConfig, ModelMistakesAreUsageErrors) {
  for (const char* bad : {"model.stack.pattern=MQ-", "model.mamba2.head_dim=7", "model.moe.top_k=9",
                          "model.mamba2.chunk=0", "model.stack.attention.period=2"}) {
    EXPECT_NE(error_of("model: {d_model: 32, stack: {pattern: ME}}\n", {bad}), "no error") << bad;
  }
}

TEST_F(WholeConfig, ReproducibleIsOfARunOrOfEveryLayout) {
  EXPECT_EQ(load(kTiny).config.train.reproducible, Reproducible::run);
  EXPECT_EQ(load(kTiny + "train: {reproducible: layout}\n").config.train.reproducible,
            Reproducible::layout);
  const std::string error = error_of(kTiny, {"train.reproducible=always"});
  EXPECT_NE(error.find("layout"), std::string::npos) << error;
  EXPECT_EQ(nlohmann::json::parse(
                config_json_schema())["properties"]["train"]["properties"]["reproducible"]["enum"],
            nlohmann::json::parse(R"(["run", "layout"])"));
}

TEST_F(WholeConfig, SchemaDescribesEveryLeaf) {
  const auto schema = nlohmann::json::parse(config_json_schema());
  const auto& train = schema["properties"]["train"]["properties"];
  for (const auto& [key, value] : train.items()) {
    EXPECT_FALSE(value["description"].get<std::string>().empty()) << key;
  }
  EXPECT_EQ(schema["properties"]["schedule"]["properties"]["type"]["enum"],
            nlohmann::json::parse(R"(["cosine", "wsd", "constant"])"));
  const auto& stack = schema["properties"]["model"]["properties"]["stack"]["properties"];
  EXPECT_EQ(stack["branches"]["items"]["anyOf"].size(), 5u);
}

}  // namespace
}  // namespace sluice::test
