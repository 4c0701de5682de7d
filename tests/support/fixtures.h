// The models of tests/golden/hf: their config.json as text to edit, and where they are.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "tests/support/temp_folder.h"

namespace sluice::test {

inline constexpr const char* kFamilies[] = {"mamba", "mamba2", "falcon_mamba",
                                            "jamba", "bamba",  "nemotron_h"};

inline std::string fixture_folder(const std::string& family) {
  return std::string(SLUICE_SOURCE_DIR) + "/tests/golden/hf/" + family;
}

// The fixture's config.json with some keys set, or removed where the value is discarded.
inline nlohmann::json fixture_config(
    const std::string& family,
    std::initializer_list<std::pair<const char*, nlohmann::json>> edits = {}) {
  nlohmann::json json = nlohmann::json::parse(read_text(fixture_folder(family) + "/config.json"));
  for (const auto& [key, value] : edits) {
    if (value.is_discarded()) {
      json.erase(key);
    } else {
      json[key] = value;
    }
  }
  return json;
}

inline const nlohmann::json kRemove = nlohmann::json(nlohmann::json::value_t::discarded);

}  // namespace sluice::test
