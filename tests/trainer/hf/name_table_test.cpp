#include "trainer/hf/name_table.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "kernels/core/error.h"
#include "layers/model.h"
#include "tests/support/errors.h"
#include "tests/support/fixtures.h"
#include "trainer/hf/hf_model.h"

namespace sluice {
namespace {

using test::expect_error;
using test::fixture_config;
using test::TempFolder;

// A model of a config.json with random values, and the folder it is written to.
class Fixture {
 public:
  explicit Fixture(Json json)
      : json_(std::move(json)), hf_(map_hf_config(json_, "config.json")), store_(DType::f32) {
    const Model model(hf_.model, store_);
    branches_ = model.branches();
    store_.freeze();
    store_.initialise(3);
    // Choice biases and norms begin equal: give every element a value of its own.
    float* const values = store_.values().as<float>();
    for (int64_t i = 0; i < store_.flat_size(); ++i) values[i] += float(i % 1009) / 1024;
    folder_.write("config.json", json_.dump());
  }

  std::vector<SourceTensor> tensors(const NamingStyle& style) const {
    return hf_tensors(hf_.family, branches_, store_, style);
  }
  NamingStyle style() const { return canonical_style(hf_.family); }
  const ParameterStore& store() const { return store_; }
  const std::string& folder() const { return folder_.path(); }
  HfFamily family() const { return hf_.family; }
  const std::vector<BranchConfig>& branches() const { return branches_; }

  // Writes the values under the style's names; `edit` may change the list first.
  void save(const NamingStyle& style,
            const std::function<void(std::vector<SafetensorsTensor>&)>& edit = {}) const {
    std::vector<SafetensorsTensor> files;
    for (const SourceTensor& tensor : tensors(style)) {
      const char* const bytes = static_cast<const char*>(store_.value(tensor.parameter).data);
      files.push_back({.name = tensor.name,
                       .type = SafetensorsType::F32,
                       .shape = tensor.shape,
                       .bytes = {bytes + tensor.begin * 4, size_t(tensor.numel()) * 4}});
    }
    if (edit) edit(files);
    write_safetensors(folder_ / "model.safetensors", files);
  }

  void expect_same_values(const LoadedModel& loaded) const {
    ASSERT_EQ(loaded.store->parameters().size(), store_.parameters().size());
    for (size_t i = 0; i < store_.parameters().size(); ++i) {
      const TensorView a = loaded.store->value({int32_t(i)});
      const TensorView b = store_.value({int32_t(i)});
      EXPECT_EQ(std::memcmp(a.data, b.data, size_t(b.numel()) * 4), 0)
          << store_.parameters()[i].name;
    }
  }

 private:
  Json json_;
  HfConfig hf_;
  ParameterStore store_;
  std::vector<BranchConfig> branches_;
  TempFolder folder_;
};

Json without_infinity(Json json) {
  json.erase("time_step_limit");
  return json;
}

Json nemotron_with_experts() {
  return without_infinity(
      fixture_config("nemotron_h", {{"layers_block_type", {"mamba", "moe"}},
                                    {"n_routed_experts", 4},
                                    {"n_group", 2},
                                    {"moe_intermediate_size", 24},
                                    {"moe_shared_expert_intermediate_size", 40}}));
}

TEST(HfNames, EveryElementHasExactlyOneName) {
  for (const char* family : test::kFamilies) {
    for (const bool fused : {false, true}) {
      const Fixture fixture(without_infinity(fixture_config(family)));
      NamingStyle style = fixture.style();
      style.fused_experts = fused;
      std::vector<std::vector<int>> named;
      for (const Parameter& parameter : fixture.store().parameters()) {
        named.emplace_back(parameter.dims.numel(), 0);
      }
      for (const SourceTensor& tensor : fixture.tensors(style)) {
        for (int64_t i = 0; i < tensor.numel(); ++i) {
          ++named[tensor.parameter.index].at(tensor.begin + i);
        }
      }
      for (const std::vector<int>& counts : named) {
        for (const int count : counts) ASSERT_EQ(count, 1) << family;
      }
    }
  }
}

TEST(HfNames, WhatIsWrittenReadsBackBitEqual) {
  for (const char* family : test::kFamilies) {
    const Fixture fixture(without_infinity(fixture_config(family)));
    fixture.save(fixture.style());
    fixture.expect_same_values(load_hf_model(fixture.folder(), DType::f32));
  }
}

TEST(HfNames, BiasesAndExpertsReadBackInEverySpelling) {
  const Fixture biased(without_infinity(fixture_config(
      "bamba", {{"attention_bias", true}, {"mlp_bias", true}, {"mamba_proj_bias", true}})));
  biased.save(biased.style());
  biased.expect_same_values(load_hf_model(biased.folder(), DType::f32));

  for (const bool jamba : {true, false}) {
    const Fixture fixture(jamba ? fixture_config("jamba") : nemotron_with_experts());
    NamingStyle style = fixture.style();
    style.fused_experts = true;
    fixture.save(style);
    fixture.expect_same_values(load_hf_model(fixture.folder(), DType::f32));
  }

  const Fixture nemotron(nemotron_with_experts());
  for (const char* prefix : {"backbone.", "model."}) {
    for (const char* embedding : {"embeddings.weight", "embedding.weight"}) {
      nemotron.save({.prefix = prefix, .embedding = embedding, .fused_experts = false});
      nemotron.expect_same_values(load_hf_model(nemotron.folder(), DType::f32));
    }
  }
}

TEST(HfNames, NamesAndShapesOfJambasParts) {
  const Fixture fixture(fixture_config("jamba"));
  std::map<std::string, SourceTensor> table;
  for (const SourceTensor& tensor : fixture.tensors(fixture.style())) table[tensor.name] = tensor;
  const SourceTensor& up = table.at("model.layers.1.feed_forward.experts.2.up_proj.weight");
  EXPECT_EQ(fixture.store().parameter(up.parameter).name, "branches.3.moe.experts.gate_up.weight");
  EXPECT_EQ(up.shape, (std::vector<int64_t>{80, 64}));
  EXPECT_EQ(up.begin, (2 * 160 + 80) * 64);
  const SourceTensor& v = table.at("model.layers.2.self_attn.v_proj.weight");
  EXPECT_EQ(fixture.store().parameter(v.parameter).name, "branches.4.attention.qkv.weight");
  EXPECT_EQ(v.begin, (64 + 32) * 64);
  const SourceTensor& conv = table.at("model.layers.0.mamba.conv1d.weight");
  EXPECT_EQ(conv.shape, (std::vector<int64_t>{128, 1, 4}));
}

TEST(HfNames, MissingUnexpectedAndMisshapenAreListedTogether) {
  const Fixture fixture(fixture_config("mamba"));
  fixture.save(fixture.style(), [](std::vector<SafetensorsTensor>& files) {
    for (SafetensorsTensor& file : files) {
      if (file.name == "backbone.layers.0.mixer.A_log") file.name = "backbone.layers.0.mixer.Alog";
      if (file.name == "backbone.norm_f.weight") file.shape = {8, 8};
    }
  });
  expect_error<DataError>(
      [&] { load_hf_model(fixture.folder(), DType::f32); },
      {"missing: backbone.layers.0.mixer.A_log", "unexpected: 'backbone.layers.0.mixer.Alog'",
       "did you mean", "backbone.norm_f.weight is [8, 8]", "asks for [64]"});
}

TEST(HfNames, ForeignTensorsAreRefusedButFurtherPredictionHeads) {
  const std::string word(4, '\0');
  const auto add = [&](const char* name) {
    return [&, name](std::vector<SafetensorsTensor>& files) {
      files.push_back({.name = name, .type = SafetensorsType::F32, .shape = {1}, .bytes = word});
    };
  };
  const Fixture nemotron(nemotron_with_experts());
  nemotron.save(nemotron.style(), add("mtp.layers.0.norm.weight"));
  nemotron.expect_same_values(load_hf_model(nemotron.folder(), DType::f32));
  const Fixture mamba(fixture_config("mamba"));
  mamba.save(mamba.style(), add("mtp.layers.0.norm.weight"));
  expect_error<DataError>([&] { load_hf_model(mamba.folder(), DType::f32); },
                          {"unexpected: 'mtp.layers.0.norm.weight'"});
}

TEST(HfNames, ASecondCopyOfATiedHeadMustBeACopy) {
  const Fixture fixture(fixture_config("mamba"));
  std::string other(96 * 64 * 4, '\1');
  const auto head = [](std::vector<SafetensorsTensor>& files, std::string_view bytes) {
    files.push_back({"lm_head.weight", SafetensorsType::F32, {96, 64}, bytes});
  };
  fixture.save(fixture.style(), [&](auto& files) { head(files, files.front().bytes); });
  fixture.expect_same_values(load_hf_model(fixture.folder(), DType::f32));
  fixture.save(fixture.style(), [&](auto& files) { head(files, other); });
  expect_error<DataError>([&] { load_hf_model(fixture.folder(), DType::f32); },
                          {"tie_word_embeddings", "lm_head.weight", "backbone.embeddings.weight"});
}

TEST(HfNames, IntegerWeightsAreRefused) {
  const Fixture fixture(fixture_config("mamba"));
  fixture.save(fixture.style(), [](std::vector<SafetensorsTensor>& files) {
    files.back().type = SafetensorsType::I32;
  });
  expect_error<DataError>([&] { load_hf_model(fixture.folder(), DType::f32); }, {"I32", "F32"});
}

TEST(HfNames, ABranchWithoutAPlaceIsRefused) {
  const Fixture jamba(fixture_config("jamba"));
  expect_error<UsageError>(
      [&] {
        hf_tensors(HfFamily::bamba, jamba.branches(), jamba.store(),
                   canonical_style(HfFamily::bamba));
      },
      {"branch 0 (mamba)", "bamba"});
  const Fixture mamba(fixture_config("falcon_mamba"));
  ParameterStore extra(DType::f32);
  const Model model(map_hf_config(fixture_config("mamba"), "config.json").model, extra);
  extra.add("branches.0.mamba.extra", {3}, {});
  expect_error<UsageError>(
      [&] {
        hf_tensors(HfFamily::mamba, model.branches(), extra, canonical_style(HfFamily::mamba));
      },
      {"branches.0.mamba.extra", "mamba has no name"});
}

TEST(HfNames, AConfigThatAsksForMoreThanTheFileIsRefusedBeforeMemory) {
  const Fixture fixture(fixture_config("mamba"));
  fixture.save(fixture.style());
  const TempFolder huge;
  const auto with = [&](const Json& json) {
    huge.write("config.json", json.dump());
    std::filesystem::copy_file(fixture.folder() + "/model.safetensors", huge / "model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    expect_error<DataError>([&] { load_hf_model(huge.path(), DType::f32); }, {huge.path()});
  };
  with(fixture_config("mamba", {{"num_hidden_layers", 10000}}));
  with(fixture_config("mamba", {{"hidden_size", 1 << 22}, {"intermediate_size", 1 << 26}}));
  with(fixture_config("mamba", {{"vocab_size", 1 << 26}}));
}

}  // namespace
}  // namespace sluice
