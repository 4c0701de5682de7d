#include "trainer/config_layers.h"

#include <algorithm>
#include <filesystem>

#include "kernels/core/error.h"
#include "trainer/stack_notation.h"
#include "trainer/yaml_document.h"

namespace sluice {
namespace {

constexpr size_t kMaxBases = 16;

// Takes `base` out of a file's tree; "" without one.
std::string take_base(ConfigNode& tree, const std::string& path, Location* where) {
  const ConfigNode* base = tree.find("base");
  if (base == nullptr) return "";
  if (!base->is_scalar() || base->text.empty()) {
    fail_at(base->where, "base: expected the path of a file, got " + describe(*base));
  }
  *where = base->where;
  const auto folder = std::filesystem::path(path).parent_path();
  const std::string out = (folder / base->text).lexically_normal().string();
  std::erase_if(tree.children, [](const ConfigNode& child) { return child.key == "base"; });
  return out;
}

std::string identity(const std::string& path) {
  std::error_code ignored;
  const auto canonical = std::filesystem::weakly_canonical(path, ignored);
  return ignored ? path : canonical.string();
}

ConfigNode load_over_bases(const std::string& path, Sources& sources,
                           std::vector<std::string>& chain) {
  const Source& source = sources.add({.name = path, .text = read_config_file(path)});
  ConfigNode tree = parse_yaml(source);
  if (tree.where.source == nullptr) tree.where = {&source, 1, 1};
  if (!tree.is_map()) {
    fail_at(tree.where, "a configuration is a map of keys, and this is " + describe(tree));
  }
  stack_notations(tree);
  chain.push_back(identity(path));
  Location base_where;
  const std::string base = take_base(tree, path, &base_where);
  if (base.empty()) return tree;
  if (std::find(chain.begin(), chain.end(), identity(base)) != chain.end()) {
    fail_at(base_where, "base: these files include each other in a circle");
  }
  if (chain.size() >= kMaxBases)
    fail_at(base_where, concat("base: more than ", kMaxBases, " files"));
  if (!std::filesystem::exists(base)) fail_at(base_where, "base: no file " + shown(base));
  ConfigNode lower = load_over_bases(base, sources, chain);
  const Location where = tree.where;
  put_over(lower, std::move(tree));
  lower.where = where;
  return lower;
}

Location at_column(const Source& source, size_t byte) { return {&source, 1, int64_t(byte) + 1}; }

ConfigNode override_value(const Source& source, size_t begin) {
  const std::string text = source.text.substr(begin);
  if (!text.empty() && std::string_view("[{\"'").find(text[0]) != std::string_view::npos) {
    return parse_yaml(source, int64_t(begin));
  }
  ConfigNode value;
  value.where = at_column(source, begin);
  value.text = text;
  if (!text.empty() && text != "null" && text != "~") value.kind = ConfigNode::Kind::scalar;
  return value;
}

ConfigNode parse_override(const Source& source) {
  const std::string& text = source.text;
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw UsageError("'" + shown(text) + "' is no override: expected dotted.key=value");
  }
  if (std::count(text.begin(), text.begin() + std::ptrdiff_t(equals), '.') >= kMaxYamlDepth) {
    fail_at(at_column(source, 0), concat("a key has at most ", kMaxYamlDepth, " parts"));
  }
  ConfigNode tree = map_node();
  tree.where = at_column(source, 0);
  ConfigNode* section = &tree;
  size_t begin = 0;
  while (true) {
    const size_t end = std::min(text.find('.', begin), equals);
    if (end == begin) fail_at(at_column(source, begin), "expected a key here: dotted.key=value");
    const bool last = end == equals;
    ConfigNode child = last ? override_value(source, equals + 1) : map_node();
    child.key = text.substr(begin, end - begin);
    child.key_where = at_column(source, begin);
    if (!last) child.where = child.key_where;
    section->children.push_back(std::move(child));
    if (last) return tree;
    section = &section->children.back();
    begin = end + 1;
  }
}

}  // namespace

ConfigNode load_config_file(const std::string& path, Sources& sources) {
  std::vector<std::string> chain;
  return load_over_bases(path, sources, chain);
}

ConfigNode parse_overrides(const std::vector<std::string>& overrides, Sources& sources) {
  ConfigNode layer = map_node();
  for (const std::string& text : overrides) {
    const Source& source = sources.add({.name = "command line", .text = text, .is_file = false});
    merge(layer, parse_override(source));
  }
  if (const ConfigNode* base = layer.find("base")) {
    fail_at(base->key_where, "base: only a file can name its base");
  }
  stack_notations(layer);
  return layer;
}

void put_over(ConfigNode& lower, ConfigNode layer) {
  discard_other_stack(lower, layer);
  merge(lower, std::move(layer));
}

}  // namespace sluice
