#include "trainer/config_reader.h"

#include <cctype>
#include <cmath>

#include "trainer/suggest.h"

namespace sluice {
namespace {

std::string range_text(const Field& field) {
  const bool has_min = std::isfinite(field.min), has_max = std::isfinite(field.max);
  if (has_min && has_max) {
    return concat(" from ", format_number(field.min), " to ", format_number(field.max));
  }
  if (has_min) return " of at least " + format_number(field.min);
  if (has_max) return " of at most " + format_number(field.max);
  return "";
}

bool in_range(const Field& field, double value) { return value >= field.min && value <= field.max; }

std::string section_text(const std::string& path) {
  return path.empty() ? "at the top level" : "in " + path;
}

[[noreturn]] void fail_type(const ConfigNode& node, const std::string& path,
                            const std::string& expected, const std::string& remedy = "") {
  fail_at(node.where, path + ": expected " + expected + ", got " + describe(node) + remedy);
}

std::string or_unset(const Field& field) {
  return field.unset[0] == '\0' ? "" : concat(" or ", field.unset);
}

}  // namespace

std::string join_path(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

std::string item_path(const std::string& path, size_t index) {
  return path + "[" + std::to_string(index) + "]";
}

bool ConfigReader::read_bool(const ConfigNode& node, const std::string& path) {
  const bool is_true = node.text == "true";
  if (!node.is_scalar() || node.quoted || (!is_true && node.text != "false")) {
    fail_type(node, path, "true or false");
  }
  return is_true;
}

int64_t ConfigReader::read_integer(const ConfigNode& node, const std::string& path,
                                   const Field& field) {
  const std::string expected = "an integer" + range_text(field) + or_unset(field);
  if (!node.is_scalar() || node.quoted) fail_type(node, path, expected);
  const std::optional<int64_t> value = parse_integer(node.text);
  if (!value) {
    const size_t digits = node.text.find_first_not_of("+-");
    const bool octal = digits != std::string::npos && node.text.size() > digits + 1 &&
                       node.text[digits] == '0' &&
                       std::isdigit(static_cast<unsigned char>(node.text[digits + 1]));
    fail_type(node, path, expected, octal ? "; write it without leading zeros" : "");
  }
  if (!in_range(field, double(*value))) fail_type(node, path, expected);
  return *value;
}

double ConfigReader::read_number(const ConfigNode& node, const std::string& path,
                                 const Field& field) {
  const std::string expected = "a number" + range_text(field) + or_unset(field);
  if (!node.is_scalar() || node.quoted) fail_type(node, path, expected);
  const std::optional<double> value = parse_number(node.text);
  if (!value || !in_range(field, *value)) fail_type(node, path, expected);
  return *value;
}

std::string ConfigReader::read_string(const ConfigNode& node, const std::string& path) {
  if (!node.is_scalar()) fail_type(node, path, "a text");
  return node.text;
}

int64_t ConfigReader::read_choice(const ConfigNode& node, const std::string& path,
                                  std::span<const char* const> names) {
  const std::vector<std::string> words(names.begin(), names.end());
  const std::string expected = "one of " + join(words);
  if (!node.is_scalar()) fail_type(node, path, expected);
  for (size_t i = 0; i < words.size(); ++i) {
    if (node.text == words[i]) return int64_t(i);
  }
  fail_type(node, path, expected, did_you_mean(node.text, words));
}

bool ConfigReader::is_unset(const ConfigNode& node, const Field& field) {
  if (node.is_null()) return true;
  return field.unset[0] != '\0' && node.is_scalar() && node.text == field.unset;
}

void ConfigReader::expect_map(const ConfigNode& node, const std::string& path) {
  if (node.is_map()) return;
  fail_type(node, path.empty() ? "configuration" : path, "a section of keys",
            node.is_null() ? "; leave it out to keep the defaults" : "");
}

void ConfigReader::expect_list(const ConfigNode& node, const std::string& path,
                               const char* of_what) {
  if (!node.is_list()) fail_type(node, path, of_what);
}

void ConfigReader::refuse_unknown(const ConfigNode& node, const std::string& path,
                                  const std::vector<std::string>& valid) const {
  for (const ConfigNode& child : node.children) {
    if (std::find(valid.begin(), valid.end(), child.key) != valid.end()) continue;
    std::string suggestion = did_you_mean(child.key, valid);
    for (const std::string& other : all_paths_) {
      const bool elsewhere = other.ends_with("." + child.key);
      if (elsewhere && suggestion.empty()) suggestion = "; did you mean '" + other + "'?";
    }
    fail_at(child.key_where,
            "unknown key '" + shown(child.key) + "' " + section_text(path) + suggestion,
            "valid keys: " + join(valid));
  }
}

void ConfigReader::check_range(const std::string& path, const Field& field, double value) const {
  if (in_range(field, value)) return;
  fail_at(nearest_location(path),
          concat(path, " is required: ", field.help, ", a number", range_text(field)));
}

Location ConfigReader::nearest_location(std::string path) const {
  while (!path.empty()) {
    const ConfigNode* node = root_.find_path(path);
    if (node != nullptr) return node->key_where.source != nullptr ? node->key_where : node->where;
    const size_t dot = path.find_last_of(".[");
    path.resize(dot == std::string::npos ? 0 : dot);
  }
  return {root_.where.source, 0, 0};
}

void ConfigReader::fail_validation(const std::string& section, const UsageError& error) const {
  std::string message = error.what();
  std::string path = section;
  if (const auto* at_field = dynamic_cast<const FieldError*>(&error)) {
    path = join_path(section, at_field->field());
    message = path + ": " + at_field->reason();
  } else if (root_.find_path(message.substr(0, message.find_first_of(": "))) != nullptr) {
    path = message.substr(0, message.find_first_of(": "));  // the message begins with its key
  }
  fail_at(nearest_location(path), message);
}

}  // namespace sluice
