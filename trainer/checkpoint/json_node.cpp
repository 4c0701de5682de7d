#include "trainer/checkpoint/json_node.h"

#include <fmt/core.h>

#include "kernels/core/error.h"

namespace sluice {

void JsonNode::fail(const std::string& what) const {
  throw DataError(fmt::format("{}: {}: {}", file_, path_.empty() ? "top level" : path_, what));
}

std::string JsonNode::got() const {
  if (value_->is_structured()) return value_->type_name();
  const std::string text = value_->dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

JsonNode JsonNode::member(const char* key) const {
  if (!value_->is_object()) fail("expected an object, got " + got());
  const auto found = value_->find(key);
  if (found == value_->end()) fail(fmt::format("has no \"{}\"", key));
  return JsonNode(*found, file_, path_.empty() ? key : path_ + "." + key);
}

std::vector<JsonNode> JsonNode::items(size_t max_count) const {
  if (!value_->is_array()) fail("expected a list, got " + got());
  if (value_->size() > max_count)
    fail(fmt::format("expected at most {} entries, got {}", max_count, value_->size()));
  std::vector<JsonNode> nodes;
  nodes.reserve(value_->size());
  for (size_t index = 0; index < value_->size(); ++index)
    nodes.push_back(JsonNode((*value_)[index], file_, fmt::format("{}[{}]", path_, index)));
  return nodes;
}

std::vector<std::pair<std::string, JsonNode>> JsonNode::members(size_t max_count) const {
  if (!value_->is_object()) fail("expected an object, got " + got());
  if (value_->size() > max_count)
    fail(fmt::format("expected at most {} entries, got {}", max_count, value_->size()));
  std::vector<std::pair<std::string, JsonNode>> nodes;
  for (const auto& [key, value] : value_->items())
    nodes.emplace_back(key, JsonNode(value, file_, path_ + "." + key));
  return nodes;
}

int64_t JsonNode::integer(int64_t min, int64_t max) const {
  // Unsigned first: nlohmann calls every number without a sign unsigned, and would wrap it.
  bool in_range = value_->is_number_integer();
  if (value_->is_number_unsigned()) {
    in_range = max >= 0 && value_->get<uint64_t>() <= uint64_t(max) &&
               (min <= 0 || value_->get<uint64_t>() >= uint64_t(min));
  } else if (in_range) {
    in_range = value_->get<int64_t>() >= min && value_->get<int64_t>() <= max;
  }
  if (!in_range) fail(fmt::format("expected an integer from {} to {}, got {}", min, max, got()));
  return value_->get<int64_t>();
}

uint64_t JsonNode::unsigned_integer() const {
  if (!value_->is_number_unsigned()) fail("expected an integer from 0 to 2^64 - 1, got " + got());
  return value_->get<uint64_t>();
}

std::string JsonNode::text(size_t max_bytes) const {
  if (!value_->is_string()) fail("expected a string, got " + got());
  const auto& text = value_->get_ref<const std::string&>();
  if (text.size() > max_bytes)
    fail(fmt::format("expected at most {} bytes, got {}", max_bytes, text.size()));
  return text;
}

std::string JsonNode::hash() const {
  const std::string digits = text(32);
  if (digits.size() != 32 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
    fail("expected a hash of 32 hexadecimal digits, got " + got());
  return digits;
}

int JsonNode::one_of(std::initializer_list<const char*> words) const {
  const std::string word = text(64);
  int index = 0;
  std::string known;
  for (const char* candidate : words) {
    if (word == candidate) return index;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", candidate);
    index += 1;
  }
  fail(fmt::format("expected one of {}, got {}", known, got()));
}

}  // namespace sluice
