#include "trainer/hf/config_mapping.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/error.h"
#include "tests/support/errors.h"
#include "tests/support/fixtures.h"

namespace sluice {
namespace {

using test::expect_error;
using test::fixture_config;
using test::kRemove;

using Edits = std::initializer_list<std::pair<const char*, Json>>;

// As a file would be read: {"__float__": "Infinity"} becomes a number.
HfConfig map(const std::string& family, Edits edits = {}) {
  const std::string text = fixture_config(family, edits).dump();
  return map_hf_config(parse_json(text, "config.json", {.non_finite = true}), "config.json");
}

void refuses(const std::string& family, Edits edits, std::initializer_list<std::string> parts) {
  expect_error<DataError>([&] { map(family, edits); }, parts);
}

template <class Config>
const Config& branch(const HfConfig& config, size_t index) {
  return std::get<Config>(config.model.stack.branches.at(index).config);
}

std::string kinds(const HfConfig& config) {
  std::string text;
  for (const BranchConfig& branch : config.model.stack.branches) {
    text += std::visit(
        [](const auto& any) {
          using Config = std::decay_t<decltype(any)>;
          if constexpr (std::is_same_v<Config, Mamba2Config>) return 'M';
          if constexpr (std::is_same_v<Config, MambaConfig>) return 'S';
          if constexpr (std::is_same_v<Config, AttentionConfig>) return '*';
          if constexpr (std::is_same_v<Config, MlpConfig>) return '-';
          if constexpr (std::is_same_v<Config, MoeConfig>) return 'E';
        },
        branch.config);
  }
  return text;
}

bool has_note(const HfConfig& config, const std::string& part) {
  for (const std::string& note : config.notes) {
    if (note.find(part) != std::string::npos) return true;
  }
  return false;
}

TEST(HfConfigMapping, Mamba) {
  const HfConfig config = map("mamba");
  EXPECT_EQ(kinds(config), "SS");
  EXPECT_TRUE(config.model.tie_embeddings);
  EXPECT_EQ(config.model.d_model, 64);
  EXPECT_EQ(config.model.vocab_size, 96);
  EXPECT_EQ(config.model.norm_eps, 1e-5);
  const MambaConfig& mamba = branch<MambaConfig>(config, 0);
  EXPECT_EQ(mamba.inner, 128);
  EXPECT_EQ(mamba.state_dim, 8);
  EXPECT_EQ(mamba.conv_width, 4);
  EXPECT_EQ(mamba.dt_rank, 3);
  EXPECT_TRUE(mamba.conv_bias);
  EXPECT_FALSE(mamba.proj_bias);
  EXPECT_EQ(mamba.inner_norm, InnerNorm::none);
  EXPECT_EQ(branch<MambaConfig>(map("mamba", {{"time_step_rank", "auto"}}), 0).dt_rank, 4);
  // The file's own inner width counts before expand: published Falcon-Mamba states expand 16.
  EXPECT_EQ(branch<MambaConfig>(map("mamba", {{"expand", 16}}), 0).inner, 128);
  EXPECT_EQ(
      branch<MambaConfig>(map("mamba", {{"intermediate_size", kRemove}, {"expand", 3}}), 0).inner,
      192);
  refuses("mamba", {{"hidden_act", "gelu"}}, {"config.json: 'hidden_act'", "gelu", "'silu'"});
}

TEST(HfConfigMapping, FalconMamba) {
  const MambaConfig mamba = branch<MambaConfig>(map("falcon_mamba", {{"mixer_rms_eps", 2e-6}}), 1);
  EXPECT_EQ(mamba.inner_norm, InnerNorm::plain);
  EXPECT_EQ(mamba.inner_norm_eps, 2e-6);
  EXPECT_EQ(mamba.dt_rank, 4);
}

TEST(HfConfigMapping, Mamba2) {
  const HfConfig config = map("mamba2");
  EXPECT_EQ(kinds(config), "MM");
  EXPECT_FALSE(config.model.tie_embeddings);
  const Mamba2Config& mamba2 = branch<Mamba2Config>(config, 0);
  EXPECT_EQ(mamba2.heads, 8);
  EXPECT_EQ(mamba2.head_dim, 16);
  EXPECT_EQ(mamba2.state_dim, 16);
  EXPECT_EQ(mamba2.groups, 1);
  EXPECT_EQ(mamba2.chunk, 32);
  EXPECT_EQ(mamba2.dt_min, 0);  // time_step_min only initialises here
  EXPECT_EQ(mamba2.dt_max, INFINITY);
  refuses("mamba2", {{"n_groups", 2}}, {"'n_groups' is '2'", "nemotron_h"});
  refuses("mamba2", {{"num_heads", 4}}, {"'num_heads'", "expand"});
  refuses("mamba2", {{"rms_norm", false}}, {"'rms_norm'"});
}

TEST(HfConfigMapping, StepLimitsInEverySpelling) {
  const auto limits = [](const Json& limit) {
    return branch<Mamba2Config>(map("mamba2", {{"time_step_limit", limit}}), 0);
  };
  EXPECT_EQ(limits({0.01, 0.2}).dt_min, 0.01);
  EXPECT_EQ(limits({0.01, 0.2}).dt_max, 0.2);
  EXPECT_EQ(limits({0.0, Json{{"__float__", "Infinity"}}}).dt_max, INFINITY);
  EXPECT_EQ(limits(kRemove).dt_max, INFINITY);
  EXPECT_EQ(limits(nullptr).dt_max, INFINITY);
  std::string text = fixture_config("mamba2", {{"time_step_limit", "HERE"}}).dump();
  text.replace(text.find("\"HERE\""), 6, "[0.0, Infinity]");
  const Json json = parse_json(text, "config.json", {.non_finite = true});
  EXPECT_EQ(branch<Mamba2Config>(map_hf_config(json, "config.json"), 0).dt_max, INFINITY);
  refuses("mamba2", {{"time_step_limit", {0.2, 0.1}}}, {"'time_step_limit'", "low <= high"});
  refuses("mamba2", {{"time_step_limit", {0.2}}}, {"'time_step_limit'"});
  refuses("mamba2", {{"time_step_limit", {0.0, "inf"}}}, {"'time_step_limit'", "a number"});
  refuses("mamba2", {{"time_step_limit", {0.0, Json{{"__float__", "NaN"}}}}},
          {"'time_step_limit'"});
}

TEST(HfConfigMapping, Jamba) {
  const HfConfig config = map("jamba");
  EXPECT_EQ(kinds(config), "S-SE*-SE");
  EXPECT_EQ(config.model.norm_eps, 1e-6);
  const MambaConfig& mamba = branch<MambaConfig>(config, 0);
  EXPECT_EQ(mamba.inner_norm, InnerNorm::learned);
  EXPECT_EQ(mamba.inner_norm_eps, 1e-6);
  const AttentionConfig& attention = branch<AttentionConfig>(config, 4);
  EXPECT_EQ(attention.heads, 4);
  EXPECT_EQ(attention.kv_heads, 2);
  EXPECT_EQ(attention.head_dim, 16);
  EXPECT_EQ(attention.rope.fraction, 0);
  EXPECT_FALSE(attention.bias);
  EXPECT_EQ(branch<MlpConfig>(config, 1).hidden, 80);
  EXPECT_EQ(branch<MlpConfig>(config, 1).activation, Activation::swiglu);
  const MoeConfig& moe = branch<MoeConfig>(config, 3);
  EXPECT_EQ(moe.experts, 4);
  EXPECT_EQ(moe.top_k, 2);
  EXPECT_EQ(moe.score, RouterScore::softmax);
  EXPECT_FALSE(moe.renormalise);
  EXPECT_EQ(moe.aux_loss, 0);
  EXPECT_EQ(moe.z_loss, 0);
  EXPECT_TRUE(has_note(config, "pad_token_id"));
  EXPECT_TRUE(has_note(config, "router_aux_loss_coef"));
  EXPECT_EQ(kinds(map("jamba", {{"num_experts", 1}})), "S-S-*-S-");
  refuses("jamba", {{"attn_layer_offset", 4}}, {"'attn_layer_offset'", "below the period 4"});
  refuses("jamba", {{"sliding_window", 128}}, {"'sliding_window'"});
}

TEST(HfConfigMapping, Bamba) {
  const HfConfig config = map("bamba");
  EXPECT_EQ(kinds(config), "M-*-M-");
  const AttentionConfig& attention = branch<AttentionConfig>(config, 2);
  EXPECT_EQ(attention.rope.fraction, 0.5);
  EXPECT_EQ(attention.rope.theta, 10000);
  EXPECT_EQ(branch<Mamba2Config>(config, 0).head_dim, 16);
  EXPECT_EQ(branch<Mamba2Config>(map("bamba", {{"mamba_d_head", "auto"}}), 0).head_dim, 16);
  const HfConfig old = map("bamba", {{"rope_parameters", kRemove}, {"rope_theta", 5000}});
  EXPECT_EQ(branch<AttentionConfig>(old, 2).rope.theta, 5000);
  refuses("bamba", {{"mamba_n_groups", 2}}, {"'mamba_n_groups'", "nemotron_h"});
  refuses("bamba", {{"mamba_n_heads", 7}}, {"'mamba_n_heads'"});
  refuses("bamba", {{"partial_rotary_factor", 1.0}}, {"'partial_rotary_factor'", "0.5"});
  refuses("bamba", {{"rope_scaling", {{"type", "linear"}}}}, {"'rope_scaling'"});
  refuses("bamba", {{"rope_parameters", {{"rope_type", "yarn"}}}}, {"'rope_type'", "'yarn'"});
  refuses("bamba", {{"rope_parameters", {{"factor", 2.0}}}}, {"'factor'"});
  refuses("bamba", {{"attn_layer_indices", {3}}}, {"'attn_layer_indices'", "[0, 2]"});
}

TEST(HfConfigMapping, NemotronH) {
  const HfConfig config = map("nemotron_h");
  EXPECT_EQ(kinds(config), "M-*-M");
  EXPECT_EQ(config.model.residual, ResidualDType::model);
  const Mamba2Config& mamba2 = branch<Mamba2Config>(config, 0);
  EXPECT_EQ(mamba2.groups, 2);
  EXPECT_EQ(mamba2.heads, 8);
  EXPECT_EQ(mamba2.dt_min, 1e-3);  // time_step_min clamps here
  EXPECT_EQ(mamba2.dt_max, INFINITY);
  EXPECT_EQ(branch<MlpConfig>(config, 1).activation, Activation::relu2);
  EXPECT_EQ(branch<AttentionConfig>(config, 2).head_dim, 16);
  EXPECT_EQ(branch<AttentionConfig>(config, 2).rope.fraction, 0);
  const HfConfig limited = map("nemotron_h", {{"time_step_limit", {0.01, 0.5}}});
  EXPECT_EQ(branch<Mamba2Config>(limited, 0).dt_min, 0.01);
  EXPECT_EQ(branch<Mamba2Config>(limited, 0).dt_max, 0.5);
}

TEST(HfConfigMapping, NemotronHStacksInEverySpelling) {
  const auto pattern = [](const Json& letters, const Json& list) {
    return kinds(
        map("nemotron_h", {{"hybrid_override_pattern", letters}, {"layers_block_type", list}}));
  };
  EXPECT_EQ(pattern("M*-EM", kRemove), "M*-EM");
  EXPECT_EQ(pattern(kRemove, {"mamba", "attention", "moe", "mlp"}), "M*E-");
  EXPECT_EQ(pattern("M*", {"linear_attention", "full_attention"}), "M*");
  EXPECT_EQ(kinds(map("nemotron_h", {{"layers_block_type", kRemove}, {"layer_types", {"mamba"}}})),
            "M");
  refuses("nemotron_h", {{"hybrid_override_pattern", "M*"}}, {"differs"});
  refuses("nemotron_h", {{"layers_block_type", kRemove}}, {"hybrid_override_pattern"});
  refuses("nemotron_h", {{"layers_block_type", kRemove}, {"hybrid_override_pattern", "MM/E"}},
          {"'/'", "place 2"});
  refuses("nemotron_h", {{"layers_block_type", {"mamba", "rwkv"}}}, {"'rwkv'"});
  refuses("nemotron_h", {{"num_hidden_layers", 7}}, {"'num_hidden_layers'", "5 layers"});
}

TEST(HfConfigMapping, NemotronHExperts) {
  const auto with = [](const char* key, const Json& value) {
    return map("nemotron_h", {{"layers_block_type", {"moe"}},
                              {"moe_intermediate_size", 48},
                              {"moe_shared_expert_intermediate_size", 40},
                              {"n_group", 2},
                              {"routed_scaling_factor", 2.5},
                              {key, value}});
  };
  const MoeConfig moe = branch<MoeConfig>(with("topk_group", 1), 0);
  EXPECT_EQ(moe.experts, 8);
  EXPECT_EQ(moe.top_k, 2);
  EXPECT_EQ(moe.hidden, 48);
  EXPECT_EQ(moe.shared_hidden, 40);
  EXPECT_EQ(moe.score, RouterScore::sigmoid);
  EXPECT_TRUE(moe.renormalise);
  EXPECT_EQ(moe.scale, 2.5);
  EXPECT_EQ(moe.groups, 2);
  EXPECT_EQ(moe.topk_group, 1);
  EXPECT_EQ(moe.activation, Activation::relu2);
  expect_error<DataError>([&] { with("moe_latent_size", 32); }, {"'moe_latent_size'", "latent"});
  expect_error<DataError>([&] { with("mlp_bias", true); }, {"'mlp_bias'"});
  expect_error<DataError>([&] { with("mlp_hidden_act", "silu"); }, {"'mlp_hidden_act'"});
}

TEST(HfConfigMapping, DefaultsAndUnusedKeysAreNoted) {
  const HfConfig config = map("mamba", {{"use_bias", kRemove}, {"my_new_idea", 3}});
  EXPECT_TRUE(has_note(config, "'use_bias' is absent: false"));
  EXPECT_TRUE(has_note(config, "'my_new_idea'"));
  EXPECT_TRUE(map("mamba").notes.empty());
  EXPECT_TRUE(map("mamba2").notes.empty());
}

TEST(HfConfigMapping, HostileValuesAreRefusedByKey) {
  for (const Json& value : {Json(0), Json(-4), Json(1ull << 40), Json(64.0), Json("64"), Json(true),
                            Json(~0ull), kRemove}) {
    refuses("mamba", {{"hidden_size", value}}, {"config.json: 'hidden_size'"});
  }
  refuses("mamba", {{"num_hidden_layers", 1 << 20}}, {"'num_hidden_layers'"});
  refuses("mamba", {{"layer_norm_epsilon", -1e-5}}, {"'layer_norm_epsilon'"});
  refuses("mamba", {{"tie_word_embeddings", 1}}, {"'tie_word_embeddings'"});
  refuses("mamba", {{"model_type", "llama"}}, {"'model_type' is 'llama'", "nemotron_h"});
  refuses("mamba", {{"model_type", kRemove}}, {"'model_type'"});
  refuses("mamba2", {{"num_heads", 1 << 22}, {"head_dim", 1 << 22}}, {"heads * head_dim"});
  refuses("jamba", {{"num_attention_heads", 7}}, {"'num_attention_heads'", "64"});
  refuses("jamba", {{"num_experts", 1 << 20}}, {"'num_experts'"});
}

}  // namespace
}  // namespace sluice
