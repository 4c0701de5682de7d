// The four notations of a stack become one table of branches.
#include "layers/model_config.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <optional>

namespace sluice {

namespace {

std::optional<BranchConfig> branch_by_letter(const ModelConfig& config, char letter) {
  std::optional<BranchConfig> branch;
  BranchKinds::for_each([&]<class Kind>() {
    if (Kind::kLetter == letter)
      branch = BranchConfig{std::get<typename Kind::Config>(config.sections)};
  });
  return branch;
}

std::vector<BranchConfig> resolve_pattern(const ModelConfig& config) {
  const std::string& pattern = config.stack.pattern;
  std::vector<BranchConfig> branches;
  for (size_t column = 0; column < pattern.size(); ++column) {
    if (pattern[column] == '|')
      continue;  // a pipeline boundary elsewhere; there is no pipeline axis
    const auto branch = branch_by_letter(config, pattern[column]);
    if (!branch) {
      throw UsageError(
          fmt::format("model.stack.pattern: '{}' in column {} of \"{}\" is no branch; letters are "
                      "M mamba2, S mamba, "
                      "* attention, - mlp, E moe",
                      pattern[column], column + 1, pattern));
    }
    branches.push_back(*branch);
  }
  return branches;
}

// A kind by name that is a mixer (or a feed-forward), or a UsageError naming those that are.
BranchConfig branch_by_name(const ModelConfig& config, const std::string& name, bool mixer,
                            const char* key) {
  std::optional<BranchConfig> branch;
  std::string valid;
  BranchKinds::for_each([&]<class Kind>() {
    if (Kind::kIsMixer != mixer) return;
    valid += (valid.empty() ? "" : ", ") + std::string(Kind::kName);
    if (name == Kind::kName)
      branch = BranchConfig{std::get<typename Kind::Config>(config.sections)};
  });
  if (!branch) {
    throw UsageError(fmt::format("model.stack.{}: '{}' is not one of {}{}", key, name, valid,
                                 mixer ? "" : ", none"));
  }
  return *branch;
}

// The layers that are attention. By ratio: count = round(n * ratio) layers with (n - count) /
// (count + 1) others between them, so the stack starts and ends with the other mixer.
std::vector<bool> attention_layers(const StackConfig& stack) {
  const AttentionPlacement& placement = stack.attention;
  std::vector<bool> is_attention(stack.layers, false);
  if (placement.period > 0 && placement.ratio > 0) {
    throw UsageError("model.stack.attention: give period and offset, or ratio, not both");
  }
  if (placement.period > 0) {
    if (placement.offset >= placement.period) {
      throw UsageError(fmt::format("model.stack.attention: offset {} must be below period {}",
                                   placement.offset, placement.period));
    }
    for (int64_t i = 0; i < stack.layers; ++i)
      is_attention[i] = i % placement.period == placement.offset;
    return is_attention;
  }
  if (placement.placement != "even") {
    throw UsageError(fmt::format("model.stack.attention.placement: '{}' is not one of even",
                                 placement.placement));
  }
  const int64_t count = std::llround(double(stack.layers) * placement.ratio);
  const double gap = double(stack.layers - count) / double(count + 1);
  double x = gap;
  for (int64_t i = 0; i < stack.layers; ++i) {
    is_attention[i] = count > 0 && x < 0.5;
    x += is_attention[i] ? gap : -1;
  }
  return is_attention;
}

std::vector<BranchConfig> resolve_layers(const ModelConfig& config) {
  const StackConfig& stack = config.stack;
  const BranchConfig mixer = branch_by_name(config, stack.mixer, /*mixer=*/true, "mixer");
  const std::vector<bool> is_attention = attention_layers(stack);
  if (stack.moe.period > 0 && stack.moe.offset >= stack.moe.period) {
    throw UsageError(fmt::format("model.stack.moe: offset {} must be below period {}",
                                 stack.moe.offset, stack.moe.period));
  }
  if (stack.moe.period > 0 && stack.ffn == "none") {
    throw UsageError("model.stack.moe needs feed-forward layers: set model.stack.ffn: mlp");
  }
  std::vector<BranchConfig> branches;
  for (int64_t i = 0; i < stack.layers; ++i) {
    branches.push_back(is_attention[i] ? branch_by_name(config, "attention", true, "mixer")
                                       : mixer);
    if (stack.ffn == "none") continue;
    const bool is_moe = stack.moe.period > 0 && i % stack.moe.period == stack.moe.offset;
    branches.push_back(branch_by_name(config, is_moe ? "moe" : stack.ffn, /*mixer=*/false, "ffn"));
  }
  return branches;
}

}  // namespace

std::span<const char* const> enum_names(ResidualDType) {
  static constexpr std::array<const char*, 2> kNames = {"f32", "model"};
  return kNames;
}

std::vector<BranchConfig> resolve_stack(const ModelConfig& config) {
  const StackConfig& stack = config.stack;
  const int notations =
      int(!stack.pattern.empty()) + int(stack.layers > 0) + int(!stack.branches.empty());
  if (notations != 1) {
    throw UsageError(fmt::format(
        "model.stack: give exactly one of pattern, layers or branches, got {}", notations));
  }
  if (!stack.pattern.empty()) return resolve_pattern(config);
  if (stack.layers > 0) return resolve_layers(config);
  return stack.branches;
}

void ModelConfig::validate() const {
  const std::vector<BranchConfig> branches_of_stack = resolve_stack(*this);
  for (size_t i = 0; i < branches_of_stack.size(); ++i) {
    validate_branch(branches_of_stack[i],
                    fmt::format("model branch {} ({})", i, branches_of_stack[i].kind()), d_model);
  }
}

std::string describe_stack(const std::vector<BranchConfig>& branches) {
  std::string text;
  for (size_t first = 0; first < branches.size();) {
    size_t last = first;
    while (last + 1 < branches.size() &&
           std::string_view(branches[last + 1].kind()) == branches[first].kind()) {
      ++last;
    }
    text += first == last ? fmt::format("{:4}       {}\n", first, branches[first].kind())
                          : fmt::format("{:4} - {:<4}{}\n", first, last, branches[first].kind());
    first = last + 1;
  }
  return text;
}

std::string stack_letters(const std::vector<BranchConfig>& branches) {
  std::string letters;
  for (const BranchConfig& branch : branches) {
    BranchKinds::for_each([&]<class Kind>() {
      if (std::holds_alternative<typename Kind::Config>(branch.config)) letters += Kind::kLetter;
    });
  }
  return letters;
}

}  // namespace sluice
