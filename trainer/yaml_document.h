// Reads untrusted YAML into a ConfigNode tree. Only this file's .cpp knows yaml-cpp, whose silent
// semantics (first duplicate wins, merge keys and further documents ignored, octal numbers) are
// refused here: scalars stay text, and every message has line, column and a caret.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/config_node.h"

namespace sluice {

inline constexpr int64_t kMaxYamlBytes = int64_t{1} << 20;
// yaml-cpp reads a whole line of nested brackets before it reports the first one.
inline constexpr int64_t kMaxYamlLine = int64_t{1} << 14;  // bytes
inline constexpr int64_t kMaxYamlLineBrackets = 1024;      // opening ones
inline constexpr int64_t kMaxYamlDepth = 64;
inline constexpr int64_t kMaxYamlKeys = 256;      // of one map
inline constexpr int64_t kMaxYamlNodes = 100000;  // aliases count as often as they are used

// The document in source.text from byte `begin` of its first line on. An empty document is an empty
// map where `begin` is 0. Throws UsageError.
ConfigNode parse_yaml(const Source& source, int64_t begin = 0);

// Reads a file of at most kMaxYamlBytes. Throws IoError or UsageError.
std::string read_config_file(const std::string& path);

}  // namespace sluice
