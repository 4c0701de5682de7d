// The kinds of residual branches. A new mixer or feed-forward layer is its own files, its header
// here, and its class in the list below (and its source in CMakeLists.txt). Its configuration
// section, its letter in stack patterns and its constructor follow from the class:
//   using Config;  static constexpr kName, kLetter, kIsMixer;  X(const LayerBuild&, const Config&)
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <variant>
#include <vector>

#include "layers/ffn/mlp.h"
#include "layers/ffn/moe.h"
#include "layers/mixers/attention.h"
#include "layers/mixers/mamba.h"
#include "layers/mixers/mamba2.h"

namespace sluice {

template <class... Kinds>
struct BranchKindList {
  using Configs = std::tuple<typename Kinds::Config...>;
  using AnyConfig = std::variant<typename Kinds::Config...>;

  // Calls body.template operator()<Kind>() for every kind, in order.
  template <class Body>
  static void for_each(Body&& body) {
    (body.template operator()<Kinds>(), ...);
  }
};

using BranchKinds = BranchKindList<Mamba2, Mamba, Attention, Mlp, Moe>;
using AnyBranchConfig = BranchKinds::AnyConfig;

// One residual branch of the stack: its kind (the variant's alternative) and configuration.
struct BranchConfig {
  AnyBranchConfig config;

  const char* kind() const;
};

std::unique_ptr<Layer> make_layer(const LayerBuild& build, const BranchConfig& branch);
void validate_branch(const BranchConfig& branch, const std::string& where, int64_t d_model);
// "mamba2, mamba, attention, mlp, moe"
std::string branch_kind_names();

}  // namespace sluice
