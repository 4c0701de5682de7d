// What maps the configurations of single families, for config_mapping.cpp.
#pragma once

#include "trainer/hf/config_keys.h"
#include "trainer/hf/config_mapping.h"

namespace sluice {

// vocab_size and hidden_size have been read.
void map_mamba(ConfigKeys& keys, HfConfig& result);  // and falcon_mamba
void map_mamba2(ConfigKeys& keys, HfConfig& result);
void map_jamba(ConfigKeys& keys, HfConfig& result);
void map_bamba(ConfigKeys& keys, HfConfig& result);
void map_nemotron_h(ConfigKeys& keys, HfConfig& result);

inline constexpr const char* kWholeNorm =
    "transformers normalises the gated output over all of the inner width there, sluice per group: "
    "the logits would differ. Only 1 is read; nemotron_h holds more groups";

template <class Config>
void add_branch(HfConfig& result, const Config& config) {
  result.model.stack.branches.push_back(BranchConfig{.config = config});
}

inline int64_t layers_of(const ConfigKeys& keys) {
  return keys.size("num_hidden_layers", ConfigKeys::kMaxLayers);
}

// What only initialises: taken where the file has it.
template <class Config>
void read_step_init(const ConfigKeys& keys, Config& config) {
  if (keys.has("time_step_min")) config.dt_init_min = keys.object().number("time_step_min");
  if (keys.has("time_step_max")) config.dt_init_max = keys.object().number("time_step_max");
  if (keys.has("time_step_floor")) config.dt_init_floor = keys.object().number("time_step_floor");
}

// "auto" is ceil(d_model / 16).
int64_t read_dt_rank(ConfigKeys& keys, const std::string& key, int64_t d_model);
// [low, high], the clamp of the step after softplus. Absent: (0, infinity).
void read_step_limit(const ConfigKeys& keys, const std::string& key, Mamba2Config& config);
// Products that the configuration's other sizes are multiplied with stay bounded.
void check_products(const ConfigKeys& keys, const Mamba2Config& mamba2);

}  // namespace sluice
