// config.json of a Hugging Face folder as a model configuration.
//
// Six families are read. What sluice does not compute exactly is refused by key and reason; a key
// that is absent takes the default of transformers 5, stated in a note (defaults differ between
// versions and forks, and the tensors' names and shapes are checked afterwards).
#pragma once

#include <string>
#include <vector>

#include "layers/model_config.h"
#include "trainer/json_file.h"

namespace sluice {

enum class HfFamily : uint8_t { mamba, mamba2, falcon_mamba, jamba, bamba, nemotron_h };
std::span<const char* const> enum_names(HfFamily);  // as `model_type` has them

struct HfConfig {
  HfFamily family = HfFamily::mamba;
  ModelConfig model;  // explicit branches; auxiliary losses 0
  // For people: defaults that were taken, keys that were not used, differences in training.
  std::vector<std::string> notes;
};

// Throws DataError naming `where` and the key.
HfConfig map_hf_config(const Json& json, const std::string& where);
// Reads FOLDER/config.json.
HfConfig read_hf_config(const std::string& folder);

}  // namespace sluice
