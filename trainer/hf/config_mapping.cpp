#include "trainer/hf/config_mapping.h"

#include <cmath>

#include "kernels/core/error.h"
#include "trainer/hf/config_families.h"

namespace sluice {

namespace {

constexpr const char* kFamilyNames[] = {"mamba", "mamba2", "falcon_mamba",
                                        "jamba", "bamba",  "nemotron_h"};
}  // namespace

void read_step_limit(const ConfigKeys& keys, const std::string& key, Mamba2Config& config) {
  if (!keys.has(key)) return;
  const Json& limit = keys.object().array(key);
  const std::string name = keys.object().name(key);
  if (limit.size() != 2) throw DataError(concat(name, " must be two numbers"));
  config.dt_min = json_number(limit[0], name);
  config.dt_max = json_number(limit[1], name);
  if (!(config.dt_min >= 0 && config.dt_min <= config.dt_max)) {
    throw DataError(concat(name, " must be [low, high] with 0 <= low <= high"));
  }
}

int64_t read_dt_rank(ConfigKeys& keys, const std::string& key, int64_t d_model) {
  const int64_t automatic = (d_model + 15) / 16;
  if (!keys.has(key)) return keys.size_or(key, automatic);
  const Json& value = keys.object().at(key);
  return value == "auto" ? automatic : keys.size(key);
}

void map_mamba(ConfigKeys& keys, HfConfig& result) {
  ModelConfig& model = result.model;
  model.tie_embeddings = keys.flag_or("tie_word_embeddings", true);
  model.norm_eps = keys.number_or("layer_norm_epsilon", 1e-5);
  model.residual =
      keys.flag_or("residual_in_fp32", true) ? ResidualDType::f32 : ResidualDType::model;
  keys.expect_word("hidden_act", "silu", "silu");

  MambaConfig mamba;
  mamba.state_dim = keys.size_or("state_size", 16);
  mamba.conv_width = keys.size_or("conv_kernel", 4);
  // A file's own intermediate_size counts: some state an `expand` that does not fit it.
  mamba.inner = keys.has("intermediate_size")
                    ? keys.size("intermediate_size", ConfigKeys::kMaxInner)
                    : keys.product("the inner width", keys.size_or("expand", 2), model.d_model);
  mamba.expand = keys.has("expand") ? keys.size("expand") : mamba.expand;
  mamba.dt_rank = read_dt_rank(keys, "time_step_rank", model.d_model);
  mamba.conv_bias = keys.flag_or("use_conv_bias", true);
  mamba.proj_bias = keys.flag_or("use_bias", false);
  if (result.family == HfFamily::falcon_mamba) {
    mamba.inner_norm = InnerNorm::plain;
    mamba.inner_norm_eps = keys.number_or("mixer_rms_eps", 1e-6);
  }
  read_step_init(keys, mamba);
  for (int64_t layers = layers_of(keys); layers > 0; --layers) add_branch(result, mamba);
}

void check_products(const ConfigKeys& keys, const Mamba2Config& mamba2) {
  keys.product("heads * head_dim", mamba2.heads, mamba2.head_dim);
  keys.product("groups * state_dim", mamba2.groups, mamba2.state_dim);
}

void map_mamba2(ConfigKeys& keys, HfConfig& result) {
  ModelConfig& model = result.model;
  model.tie_embeddings = keys.flag_or("tie_word_embeddings", false);
  model.norm_eps = keys.number_or("layer_norm_epsilon", 1e-5);
  model.residual =
      keys.flag_or("residual_in_fp32", true) ? ResidualDType::f32 : ResidualDType::model;
  keys.expect_word("hidden_act", "silu", "silu");
  if (keys.has("rms_norm")) {
    keys.expect_flag("rms_norm", true, true, "the gated norm is always applied here");
  }

  Mamba2Config mamba2;
  mamba2.heads = keys.size("num_heads");
  mamba2.head_dim = keys.size("head_dim");
  mamba2.state_dim = keys.size("state_size");
  mamba2.groups = keys.size("n_groups");
  if (mamba2.groups != 1) keys.refuse("n_groups", kWholeNorm);
  mamba2.conv_width = keys.size_or("conv_kernel", 4);
  mamba2.chunk = keys.size_or("chunk_size", 256);
  mamba2.expand = keys.size_or("expand", 2);
  mamba2.conv_bias = keys.flag_or("use_conv_bias", true);
  mamba2.proj_bias = keys.flag_or("use_bias", false);
  read_step_limit(keys, "time_step_limit", mamba2);
  read_step_init(keys, mamba2);
  check_products(keys, mamba2);
  if (mamba2.heads * mamba2.head_dim !=
      keys.product("expand * hidden_size", mamba2.expand, model.d_model)) {
    keys.refuse("num_heads", "num_heads * head_dim must equal expand * hidden_size");
  }
  for (int64_t layers = layers_of(keys); layers > 0; --layers) add_branch(result, mamba2);
}

namespace {

HfFamily read_family(const JsonObject& object) {
  const std::string& name = object.string("model_type");
  std::string known;
  for (size_t i = 0; i < std::size(kFamilyNames); ++i) {
    if (name == kFamilyNames[i]) return HfFamily(i);
    known += concat(i == 0 ? "" : ", ", kFamilyNames[i]);
  }
  throw DataError(concat(object.name("model_type"), " is ", printable(name), "; read are ", known));
}

}  // namespace

std::span<const char* const> enum_names(HfFamily) { return kFamilyNames; }

HfConfig map_hf_config(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  HfConfig result;
  result.family = read_family(object);
  ConfigKeys keys(object);
  result.model.vocab_size = keys.size("vocab_size", ConfigKeys::kMaxInner);
  result.model.d_model = keys.size("hidden_size");
  switch (result.family) {
    case HfFamily::mamba:
    case HfFamily::falcon_mamba:
      map_mamba(keys, result);
      break;
    case HfFamily::mamba2:
      map_mamba2(keys, result);
      break;
    case HfFamily::jamba:
      map_jamba(keys, result);
      break;
    case HfFamily::bamba:
      map_bamba(keys, result);
      break;
    case HfFamily::nemotron_h:
      map_nemotron_h(keys, result);
      break;
  }
  for (const char* dropout : {"attention_dropout", "hidden_dropout"}) {
    if (keys.has(dropout) && keys.object().at(dropout) != 0) {
      keys.note(concat(object.name(dropout), " is a setting of training: unused"));
    }
  }
  result.notes = keys.take_notes();
  return result;
}

HfConfig read_hf_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  return map_hf_config(read_json_file(path, {.max_bytes = int64_t{1} << 20, .non_finite = true}),
                       path);
}

}  // namespace sluice
