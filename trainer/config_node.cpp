#include "trainer/config_node.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "trainer/scalars.h"

namespace sluice {
namespace {

constexpr size_t kShownLength = 60;
constexpr size_t kLineWindow = 96;

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7f;
}

// The line of a location and a caret under its column; of a long line, the part around it.
std::string excerpt(const Location& where) {
  const std::string& text = where.source->text;
  size_t begin = 0;
  for (int64_t line = 1; line < where.line && begin < text.size(); ++line) {
    const size_t end = text.find('\n', begin);
    begin = end == std::string::npos ? text.size() : end + 1;
  }
  std::string line = text.substr(begin, text.find('\n', begin) - begin);
  if (!line.empty() && line.back() == '\r') line.pop_back();
  size_t caret = size_t(std::max<int64_t>(where.column, 1) - 1);
  caret = std::min(caret, line.size());
  const size_t skip = caret > kLineWindow / 2 ? caret - kLineWindow / 2 : 0;
  if (line.size() > kLineWindow) {
    line = line.substr(skip, kLineWindow);
    caret -= skip;
  }
  for (char& c : line) c = c == '\t' ? ' ' : is_control(c) ? '?' : c;
  return concat("  ", line, "\n  ", std::string(caret, ' '), "^");
}

bool is_plain_word(const std::string& text) {
  static const std::vector<std::string> kReserved = {"true", "false", "null", "yes", "no",
                                                     "on",   "off",   "y",    "n"};
  std::string lower = text;
  for (char& c : lower) c = char(std::tolower(static_cast<unsigned char>(c)));
  if (std::find(kReserved.begin(), kReserved.end(), lower) != kReserved.end()) return false;
  const auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '/' || c == '.' ||
           c == '-' || c == '+';
  };
  const bool starts_well = !text.empty() && (std::isalpha(static_cast<unsigned char>(text[0])) ||
                                             text[0] == '_' || text[0] == '/');
  return starts_well && std::all_of(text.begin(), text.end(), allowed);
}

nlohmann::ordered_json json_of(const ConfigNode& node) {
  using Json = nlohmann::ordered_json;
  if (node.is_null()) return nullptr;
  if (node.is_map()) {
    Json out = Json::object();
    for (const ConfigNode& child : node.children) out[child.key] = json_of(child);
    return out;
  }
  if (node.is_list()) {
    Json out = Json::array();
    for (const ConfigNode& child : node.children) out.push_back(json_of(child));
    return out;
  }
  if (node.quoted) return node.text;
  const Json value = Json::parse(node.text, nullptr, false);
  return value.is_discarded() ? Json(node.text) : value;  // .inf is no JSON number
}

std::string dump(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string scalar_yaml(const ConfigNode& node) {
  if (node.is_null()) return "null";
  if (!node.quoted || is_plain_word(node.text)) return node.text;
  return dump(node.text, -1);  // a JSON string is a YAML double-quoted string
}

bool is_leaf(const ConfigNode& node) {
  if (node.children.empty()) return true;
  if (node.is_map()) return false;
  return std::all_of(node.children.begin(), node.children.end(),
                     [](const ConfigNode& item) { return item.children.empty(); });
}

std::string leaf_yaml(const ConfigNode& node) {
  if (node.is_map()) return "{}";
  if (!node.is_list()) return scalar_yaml(node);
  std::string out = "[";
  for (const ConfigNode& item : node.children) {
    if (out.size() > 1) out += ", ";
    out += leaf_yaml(item);
  }
  out += ']';
  return out;
}

class YamlWriter {
 public:
  explicit YamlWriter(ShowOrigins origins) : origins_(origins) {}

  void write(const ConfigNode& node, const std::string& indent) {
    for (const ConfigNode& child : node.children) {
      const std::string head = node.is_map() ? child.key + ":" : "-";
      if (is_leaf(child)) {
        line(indent + head + " " + leaf_yaml(child), &child.where);
      } else if (node.is_map()) {
        line(indent + head, nullptr);
        write(child, indent + "  ");
      } else {
        item(child, indent);
      }
    }
  }

  std::string text() const {
    size_t width = 0;
    for (const auto& [text, where] : lines_)
      width = std::max(width, std::min<size_t>(text.size(), 60));
    std::string out;
    for (const auto& [text, where] : lines_) {
      out += text;
      if (where != nullptr && origins_ == ShowOrigins::yes) {
        out += std::string(text.size() < width ? width - text.size() : 0, ' ');
        out += "  # " + origin_of(*where);
      }
      out += '\n';
    }
    return out;
  }

 private:
  void line(std::string text, const Location* where) {
    lines_.emplace_back(std::move(text), where);
  }

  // A list's item that is a map or a list: its first line carries the dash.
  void item(const ConfigNode& node, const std::string& indent) {
    const size_t first = lines_.size();
    write(node, indent + "  ");
    lines_[first].first[indent.size()] = '-';
  }

  ShowOrigins origins_;
  std::vector<std::pair<std::string, const Location*>> lines_;
};

void flatten_into(const ConfigNode& node, const std::string& path, std::vector<FlatValue>& out) {
  if (is_leaf(node) && !(node.is_map() && path.empty())) {
    out.push_back({path, leaf_yaml(node), node.where});
    return;
  }
  for (size_t i = 0; i < node.children.size(); ++i) {
    const ConfigNode& child = node.children[i];
    const std::string dot = path.empty() ? "" : ".";
    flatten_into(child, node.is_map() ? path + dot + child.key : concat(path, "[", i, "]"), out);
  }
}

}  // namespace

const Source& Sources::add(Source source) {
  sources_.push_back(std::make_unique<Source>(std::move(source)));
  return *sources_.back();
}

std::string origin_of(const Location& where) {
  if (where.source == nullptr) return "default";
  if (!where.source->is_file) return "override";
  return where.source->name + ":" + std::to_string(where.line);
}

std::string shown(std::string_view text) {
  std::string out(text.substr(0, kShownLength));
  for (char& c : out) c = is_control(c) ? '?' : c;
  return text.size() > kShownLength ? out + "..." : out;
}

void fail_at(const Location& where, const std::string& message, const std::string& hint) {
  std::string text = message;
  if (where.source != nullptr && where.line == 0) {
    text = where.source->name + ": " + message;
  } else if (where.source != nullptr) {
    const std::string position =
        where.source->is_file ? concat(":", where.line, ":", where.column) : std::string();
    text = where.source->name + position + ": " + message + "\n" + excerpt(where);
  }
  throw UsageError(hint.empty() ? text : text + "\n  " + hint);
}

const ConfigNode* ConfigNode::find(std::string_view child_key) const {
  if (!is_map()) return nullptr;
  for (const ConfigNode& child : children) {
    if (child.key == child_key) return &child;
  }
  return nullptr;
}

ConfigNode* ConfigNode::find(std::string_view child_key) {
  return const_cast<ConfigNode*>(std::as_const(*this).find(child_key));
}

const ConfigNode* ConfigNode::find_path(std::string_view path) const {
  const ConfigNode* node = this;
  while (node != nullptr && !path.empty()) {
    const size_t end = std::min(path.find_first_of(".[", 1), path.size());
    const std::string_view part = path.substr(0, end);
    path = path.substr(end);
    if (part[0] == '[') {
      const auto index = parse_integer(part.substr(1, part.size() - 2));
      const bool inside =
          node->is_list() && index && *index >= 0 && *index < int64_t(node->children.size());
      node = inside ? &node->children[size_t(*index)] : nullptr;
    } else {
      node = node->find(part);
    }
    if (path.starts_with('.')) path = path.substr(1);
  }
  return node;
}

std::vector<std::string> ConfigNode::keys() const {
  std::vector<std::string> out;
  for (const ConfigNode& child : children) out.push_back(child.key);
  return out;
}

ConfigNode map_node() {
  ConfigNode node;
  node.kind = ConfigNode::Kind::map;
  return node;
}

void merge(ConfigNode& into, ConfigNode from) {
  if (!into.is_map() || !from.is_map()) {
    into = std::move(from);
    return;
  }
  for (ConfigNode& child : from.children) {
    if (ConfigNode* mine = into.find(child.key)) {
      merge(*mine, std::move(child));
    } else {
      into.children.push_back(std::move(child));
    }
  }
}

std::string describe(const ConfigNode& node) {
  switch (node.kind) {
    case ConfigNode::Kind::null:
      return "nothing";
    case ConfigNode::Kind::scalar:
      return concat("'", shown(node.text), "'");
    case ConfigNode::Kind::list:
      return "a list";
    case ConfigNode::Kind::map:
      return "a map of keys";
  }
  SLUICE_CHECK(false, "unknown kind of node");
}

std::string to_yaml(const ConfigNode& root, ShowOrigins origins) {
  if (root.children.empty()) return leaf_yaml(root) + "\n";
  YamlWriter writer(origins);
  writer.write(root, "");
  return writer.text();
}

std::string to_json(const ConfigNode& root, int indent) { return dump(json_of(root), indent); }

std::vector<FlatValue> flatten(const ConfigNode& root) {
  std::vector<FlatValue> out;
  flatten_into(root, "", out);
  return out;
}

std::vector<std::string> differing_keys(const ConfigNode& a, const ConfigNode& b) {
  std::map<std::string, std::string> rest;
  for (FlatValue& value : flatten(b)) rest.emplace(std::move(value.path), std::move(value.text));
  std::vector<std::string> out;
  for (const FlatValue& value : flatten(a)) {
    const auto other = rest.find(value.path);
    if (other == rest.end() || other->second != value.text) out.push_back(value.path);
    if (other != rest.end()) rest.erase(other);
  }
  for (const auto& [path, text] : rest) out.push_back(path);
  return out;
}

}  // namespace sluice
