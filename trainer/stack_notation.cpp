#include "trainer/stack_notation.h"

#include <algorithm>
#include <array>

namespace sluice {
namespace {

struct NotationKey {
  const char* path;  // under model.stack
  unsigned notations;
};
constexpr std::array<NotationKey, 10> kKeys = {{
    {"pattern", kStackPattern},
    {"layers", kStackPeriod | kStackRatio},
    {"mixer", kStackPeriod | kStackRatio},
    {"ffn", kStackPeriod | kStackRatio},
    {"moe", kStackPeriod | kStackRatio},
    {"attention.period", kStackPeriod},
    {"attention.offset", kStackPeriod},
    {"attention.ratio", kStackRatio},
    {"attention.placement", kStackRatio},
    {"branches", kStackBranches},
}};

}  // namespace

unsigned stack_notations(const ConfigNode& layer) {
  const ConfigNode* stack = layer.find_path("model.stack");
  if (stack == nullptr) return kNoStack;
  unsigned fitting = kNoStack;
  const char* first = nullptr;
  for (const NotationKey& key : kKeys) {
    const ConfigNode* node = stack->find_path(key.path);
    if (node == nullptr) continue;
    if (first != nullptr && (fitting & key.notations) == 0) {
      fail_at(node->key_where,
              std::string("model.stack is written in two notations: '") + first + "' and '" +
                  key.path + "'",
              "use one of: pattern | layers with attention.period | layers with attention.ratio | "
              "branches");
    }
    fitting = first == nullptr ? key.notations : fitting & key.notations;
    if (first == nullptr || key.notations == fitting) first = key.path;
  }
  return fitting;
}

void discard_other_stack(ConfigNode& lower, const ConfigNode& layer) {
  const unsigned ours = stack_notations(layer);
  const unsigned theirs = stack_notations(lower);
  if (ours == kNoStack || theirs == kNoStack || (ours & theirs) != 0) return;
  ConfigNode* model = lower.find("model");
  std::erase_if(model->children, [](const ConfigNode& child) { return child.key == "stack"; });
}

void keep_used_stack(ConfigNode& written) {
  ConfigNode* model = written.find("model");
  ConfigNode* stack = model == nullptr ? nullptr : model->find("stack");
  if (stack == nullptr) return;
  const auto text = [&](const char* path) {
    const ConfigNode* node = stack->find_path(path);
    return node == nullptr ? std::string() : node->text;
  };
  const ConfigNode* branches = stack->find("branches");
  const std::string ratio = text("attention.ratio");
  unsigned used = kStackPeriod;
  if (!text("pattern").empty()) {
    used = kStackPattern;
  } else if (branches != nullptr && !branches->children.empty()) {
    used = kStackBranches;
  } else if (!ratio.empty() && ratio != "0") {
    used = kStackRatio;
  }
  for (const NotationKey& key : kKeys) {
    if ((key.notations & used) != 0) continue;
    const std::string path = key.path;
    const size_t dot = path.find('.');
    ConfigNode* parent = dot == std::string::npos ? stack : stack->find(path.substr(0, dot));
    if (parent == nullptr) continue;
    const std::string name = dot == std::string::npos ? path : path.substr(dot + 1);
    std::erase_if(parent->children, [&](const ConfigNode& child) { return child.key == name; });
  }
  std::erase_if(stack->children, [](const ConfigNode& child) {
    return child.key == "attention" && child.children.empty();
  });
}

}  // namespace sluice
