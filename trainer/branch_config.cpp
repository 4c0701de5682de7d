#include "trainer/branch_config.h"

#include <type_traits>

#include "trainer/suggest.h"

namespace sluice {
namespace {

std::vector<std::string> kind_names() {
  std::vector<std::string> names;
  BranchKinds::for_each([&]<class Kind>() { names.emplace_back(Kind::kName); });
  return names;
}

// model.mamba2, for a branch at model.stack.branches[3].
const ConfigNode* section_of(const ConfigNode& root, const std::string& branch_path,
                             const std::string& kind) {
  const size_t stack = branch_path.rfind("stack.");
  const std::string model = stack == std::string::npos ? "" : branch_path.substr(0, stack);
  return root.find_path(model + kind);
}

}  // namespace

void read_config(ConfigReader& reader, const ConfigNode& node, const std::string& path,
                 BranchConfig& branch) {
  const std::vector<std::string> kinds = kind_names();
  const ConfigNode* type = node.find("type");
  if (type == nullptr || !type->is_scalar()) {
    fail_at(node.where, path + ": expected {type: KIND, ...}, got " + describe(node),
            "kinds: " + join(kinds));
  }
  const std::string kind = type->text;
  if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) {
    fail_at(type->where,
            path + ".type: no kind of branch '" + shown(kind) + "'" + did_you_mean(kind, kinds),
            "kinds: " + join(kinds));
  }
  ConfigNode merged = map_node();
  merged.where = node.where;
  if (const ConfigNode* section = section_of(reader.root(), path, kind)) merged = *section;
  ConfigNode overrides = node;
  std::erase_if(overrides.children, [](const ConfigNode& child) { return child.key == "type"; });
  merge(merged, std::move(overrides));
  BranchKinds::for_each([&]<class Kind>() {
    if (kind != Kind::kName) return;
    typename Kind::Config config;
    reader.read_section(merged, path, config);
    branch.config = config;
  });
}

ConfigNode write_config(const BranchConfig& branch, const OriginMap& origins,
                        const std::string& path) {
  ConfigNode type;
  type.kind = ConfigNode::Kind::scalar;
  type.key = "type";
  type.quoted = true;
  ConfigNode map;
  BranchKinds::for_each([&]<class Kind>() {
    const auto* config = std::get_if<typename Kind::Config>(&branch.config);
    if (config == nullptr) return;
    type.text = Kind::kName;
    map = write_section(*config, origins, path);
  });
  map.children.insert(map.children.begin(), type);
  return map;
}

}  // namespace sluice
