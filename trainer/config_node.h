// The tree that configuration files, overrides and resolved configurations are: every value knows
// where it was written. YAML is read into it (yaml_document.h) and written from it here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice {

// A text that values come from: a file, or one `key=value` of the command line.
struct Source {
  std::string name = {};
  std::string text = {};
  bool is_file = true;
};

// Owns the sources that Locations point into.
class Sources {
 public:
  const Source& add(Source source);

 private:
  std::vector<std::unique_ptr<Source>> sources_;
};

struct Location {
  const Source* source = nullptr;  // null: a default
  int64_t line = 0;                // from 1; 0: no line in particular
  int64_t column = 0;              // from 1, in bytes
};

// "default", "override", or "file.yaml:12".
std::string origin_of(const Location& where);

// Throws UsageError: "file:line:col: message", the line itself with a caret, and the hint.
[[noreturn]] void fail_at(const Location& where, const std::string& message,
                          const std::string& hint = "");

// User text for a message: cut to a readable length, control characters replaced.
std::string shown(std::string_view text);

struct ConfigNode {
  enum class Kind { null, scalar, list, map };
  Kind kind = Kind::null;
  std::string key;     // within a map
  Location key_where;  // "
  Location where;
  std::string text;     // of a scalar
  bool quoted = false;  // a string for certain: never read as a number, bool or null
  std::vector<ConfigNode> children;

  bool is_map() const { return kind == Kind::map; }
  bool is_list() const { return kind == Kind::list; }
  bool is_scalar() const { return kind == Kind::scalar; }
  bool is_null() const { return kind == Kind::null; }
  const ConfigNode* find(std::string_view child_key) const;
  const ConfigNode* find_path(std::string_view path) const;  // "data.train[0].path"
  ConfigNode* find(std::string_view child_key);
  std::vector<std::string> keys() const;
};

ConfigNode map_node();

// Puts `from` over `into`: maps are merged key by key, anything else is replaced.
void merge(ConfigNode& into, ConfigNode from);

// "a list", "a map", "'text'": for messages about what was got.
std::string describe(const ConfigNode& node);

enum class ShowOrigins { no, yes };
// Block style; with ShowOrigins::yes every value is followed by a comment that says where it came
// from.
std::string to_yaml(const ConfigNode& root, ShowOrigins origins);

// Scalars stay JSON numbers, bools and strings.
std::string to_json(const ConfigNode& root, int indent = 2);

// Every leaf as (dotted path, text), in order. Items of lists are path[i].
struct FlatValue {
  std::string path;
  std::string text = {};
  Location where;
};
std::vector<FlatValue> flatten(const ConfigNode& root);

// Dotted paths of the leaves that two trees do not share or that differ, in the order of `a`, then
// b.
std::vector<std::string> differing_keys(const ConfigNode& a, const ConfigNode& b);

}  // namespace sluice
