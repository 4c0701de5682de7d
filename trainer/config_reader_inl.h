// Templates of config_reader.h.
#pragma once

#include <algorithm>
#include <utility>

#include "trainer/scalars.h"

namespace sluice {

struct ConfigReader::SectionVisitor {
  ConfigReader& reader;
  const ConfigNode& node;
  const std::string& path;
  std::vector<std::string> names = {};

  template <class T>
  void operator()(const Field& field, T& value) {
    if (const ConfigNode* child = child_of(field)) {
      reader.read_value(*child, join_path(path, field.name), field, value);
    }
  }
  template <class T>
  void operator()(const Field& field, std::vector<T>& list, const T& prototype) {
    if (const ConfigNode* child = child_of(field)) {
      reader.read_list(*child, join_path(path, field.name), field, list, prototype);
    }
  }

 private:
  const ConfigNode* child_of(const Field& field) {
    names.emplace_back(field.name);
    return node.find(field.name);
  }
};

struct ConfigReader::CheckVisitor {
  ConfigReader& reader;
  const std::string& path;

  template <class T, class... Prototype>
  void operator()(const Field& field, T& value, const Prototype&...) {
    reader.check_value(join_path(path, field.name), field, value);
  }
};

// Collects the dotted path of every key, for suggestions across sections.
struct ConfigReader::PathVisitor {
  std::vector<std::string>& paths;
  const std::string path;

  template <class T, class... Prototype>
  void operator()(const Field& field, T& value, const Prototype&...) {
    const std::string mine = join_path(path, field.name);
    paths.push_back(mine);
    if constexpr (ConfigSection<T>) value.fields(PathVisitor{paths, mine});
  }
};

template <class T>
void ConfigReader::read(T& config) {
  T probe = config;
  probe.fields(PathVisitor{all_paths_, ""});
  read_section(root_, "", config);
  check_section("", config);
}

template <class T>
void ConfigReader::read_section(const ConfigNode& node, const std::string& path, T& section) {
  if constexpr (HasShorthand<T>) {
    if (node.is_scalar()) {
      ConfigNode map = map_node();
      map.where = node.where;
      map.children.push_back(node);
      map.children[0].key = T::kShorthand;
      return read_section(map, path, section);
    }
  }
  expect_map(node, path);
  SectionVisitor visitor{*this, node, path};
  section.fields(visitor);
  refuse_unknown(node, path, visitor.names);
}

template <class T>
void ConfigReader::read_list(const ConfigNode& node, const std::string& path, const Field& field,
                             std::vector<T>& list, const T& prototype) {
  list.clear();
  origins_[path] = node.where;
  if constexpr (HasShorthand<T>) {
    if (node.is_scalar()) {
      list.push_back(prototype);
      return read_value(node, item_path(path, 0), field, list.back());
    }
  }
  expect_list(node, path, "a list");
  for (size_t i = 0; i < node.children.size(); ++i) {
    list.push_back(prototype);
    read_value(node.children[i], item_path(path, i), field, list.back());
  }
}

template <class T>
void ConfigReader::read_value(const ConfigNode& node, const std::string& path, const Field& field,
                              T& value) {
  origins_[path] = node.where;
  if constexpr (std::is_same_v<T, bool>) {
    value = read_bool(node, path);
  } else if constexpr (std::is_same_v<T, int64_t>) {
    value = read_integer(node, path, field);
  } else if constexpr (std::is_same_v<T, double>) {
    value = read_number(node, path, field);
  } else if constexpr (std::is_same_v<T, std::string>) {
    value = read_string(node, path);
  } else if constexpr (std::is_enum_v<T>) {
    value = T(read_choice(node, path, enum_names(value)));
  } else if constexpr (kIsOptional<T>) {
    if (is_unset(node, field)) {
      value.reset();
    } else {
      if (!value) value.emplace();
      read_value(node, path, field, *value);
    }
  } else if constexpr (kIsVector<T>) {
    read_list(node, path, field, value, typename T::value_type{});
  } else if constexpr (kIsArray<T>) {
    std::vector<typename T::value_type> list;
    read_list(node, path, field, list, typename T::value_type{});
    if (list.size() != value.size()) {
      fail_at(node.where,
              concat(path, ": expected a list of ", value.size(), " values, got ", list.size()));
    }
    std::copy(list.begin(), list.end(), value.begin());
  } else if constexpr (ConfigSection<T>) {
    read_section(node, path, value);
  } else {
    read_config(*this, node, path, value);
  }
}

template <class T>
void ConfigReader::check_value(const std::string& path, const Field& field, const T& value) {
  if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>) {
    check_range(path, field, double(value));
  } else if constexpr (kIsOptional<T>) {
    if (value) check_value(path, field, *value);
  } else if constexpr (kIsVector<T> || kIsArray<T>) {
    for (size_t i = 0; i < value.size(); ++i) check_value(item_path(path, i), field, value[i]);
  } else if constexpr (ConfigSection<T>) {
    check_section(path, value);
  }
}

template <class T>
void ConfigReader::check_section(const std::string& path, const T& section) {
  T copy = section;  // fields() is not const
  copy.fields(CheckVisitor{*this, path});
  if constexpr (HasValidate<T>) {
    try {
      section.validate();
    } catch (const UsageError& error) {
      fail_validation(path, error);
    }
  }
}

class NodeWriter {
 public:
  NodeWriter(ConfigNode& map, const OriginMap& origins, const std::string& path)
      : map_(map), origins_(origins), path_(path) {}

  template <class T, class... Prototype>
  void operator()(const Field& field, const T& value, const Prototype&...) {
    if constexpr (kIsOptional<T>) {
      if (!value && field.unset[0] == '\0') return;
    }
    ConfigNode child = node_of(field, value, join_path(path_, field.name));
    child.key = field.name;
    map_.children.push_back(std::move(child));
  }

 private:
  ConfigNode scalar(std::string text, bool quoted) const {
    ConfigNode node;
    node.kind = ConfigNode::Kind::scalar;
    node.text = std::move(text);
    node.quoted = quoted;
    return node;
  }

  template <class T>
  ConfigNode value_node(const Field& field, const T& value, const std::string& path) const {
    if constexpr (std::is_same_v<T, bool>) {
      return scalar(value ? "true" : "false", false);
    } else if constexpr (std::is_same_v<T, int64_t>) {
      return scalar(std::to_string(value), false);
    } else if constexpr (std::is_same_v<T, double>) {
      return scalar(format_number(value), false);
    } else if constexpr (std::is_same_v<T, std::string>) {
      return scalar(value, true);
    } else if constexpr (std::is_enum_v<T>) {
      return scalar(enum_names(value)[size_t(value)], true);
    } else if constexpr (kIsOptional<T>) {
      return value ? value_node(field, *value, path) : scalar(field.unset, true);
    } else if constexpr (kIsVector<T> || kIsArray<T>) {
      ConfigNode list;
      list.kind = ConfigNode::Kind::list;
      for (size_t i = 0; i < value.size(); ++i) {
        list.children.push_back(node_of(field, value[i], item_path(path, i)));
      }
      return list;
    } else if constexpr (ConfigSection<T>) {
      return write_section(value, origins_, path);
    } else {
      return write_config(value, origins_, path);
    }
  }

  template <class T>
  ConfigNode node_of(const Field& field, const T& value, const std::string& path) const {
    ConfigNode node = value_node(field, value, path);
    const auto origin = origins_.find(path);
    if (origin != origins_.end()) node.where = origin->second;
    return node;
  }

  ConfigNode& map_;
  const OriginMap& origins_;
  const std::string& path_;
};

template <class T>
ConfigNode write_section(const T& section, const OriginMap& origins, const std::string& path) {
  ConfigNode map = map_node();
  T copy = section;  // fields() is not const
  copy.fields(NodeWriter(map, origins, path));
  return map;
}

}  // namespace sluice
