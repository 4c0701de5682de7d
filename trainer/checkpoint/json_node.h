// Values of a JSON document that cannot be trusted, read through getters that check type and range
// and name the place: "files[2].bytes".
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "trainer/json_file.h"

namespace sluice {

// A value with its place. Borrows the value.
class JsonNode {
 public:
  JsonNode(const Json& root, std::string file) : value_(&root), file_(std::move(file)) {}

  // Each throws DataError if the value is of another type, is missing, or is out of range.
  JsonNode member(const char* key) const;
  std::vector<JsonNode> items(size_t max_count) const;
  std::vector<std::pair<std::string, JsonNode>> members(size_t max_count) const;
  int64_t integer(int64_t min, int64_t max) const;
  uint64_t unsigned_integer() const;
  std::string text(size_t max_bytes) const;
  // Exactly 32 lower-case hexadecimal digits.
  std::string hash() const;
  // Which of the words it is.
  int one_of(std::initializer_list<const char*> words) const;

  const Json& value() const { return *value_; }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  JsonNode(const Json& value, std::string file, std::string path)
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}
  // What was found instead, cut short.
  std::string got() const;

  const nlohmann::json* value_;
  std::string file_;
  std::string path_;  // "" for the root
};

}  // namespace sluice
