#include "layers/registry.h"

namespace sluice {

namespace {

// Runs body<Kind>(config) for the kind whose configuration the branch holds.
template <class Body>
void visit_kind(const BranchConfig& branch, Body&& body) {
  BranchKinds::for_each([&]<class Kind>() {
    if (const auto* config = std::get_if<typename Kind::Config>(&branch.config)) {
      body.template operator()<Kind>(*config);
    }
  });
}

}  // namespace

const char* BranchConfig::kind() const {
  const char* name = "";
  visit_kind(*this, [&]<class Kind>(const auto&) { name = Kind::kName; });
  return name;
}

std::unique_ptr<Layer> make_layer(const LayerBuild& build, const BranchConfig& branch) {
  std::unique_ptr<Layer> layer;
  visit_kind(branch, [&]<class Kind>(const auto& config) {
    layer = std::make_unique<Kind>(build, config);
  });
  return layer;
}

void validate_branch(const BranchConfig& branch, const std::string& where, int64_t d_model) {
  visit_kind(branch, [&]<class Kind>(const auto& config) { config.validate(where, d_model); });
}

std::string branch_kind_names() {
  std::string names;
  BranchKinds::for_each(
      [&]<class Kind>() { names += (names.empty() ? "" : ", ") + std::string(Kind::kName); });
  return names;
}

}  // namespace sluice
