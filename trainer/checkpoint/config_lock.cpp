#include "trainer/checkpoint/config_lock.h"

#include <fmt/core.h>

#include <algorithm>

#include "kernels/core/error.h"

namespace sluice {

namespace {

constexpr size_t kNamedKeys = 5;

// The key is `section`, or lies in it: "model" holds "model.d_model" and "model[0]".
bool lies_in(std::string_view key, std::string_view section) {
  if (!key.starts_with(section)) return false;
  return key.size() == section.size() || key[section.size()] == '.' || key[section.size()] == '[';
}

bool lies_in_any(std::string_view key, std::initializer_list<std::string_view> sections) {
  return std::any_of(sections.begin(), sections.end(),
                     [key](std::string_view section) { return lies_in(key, section); });
}

std::optional<std::string> value_of(const FlatConfig& config, const std::string& key) {
  const auto found = config.find(key);
  return found == config.end() ? std::nullopt : std::optional(found->second);
}

// Of a run whose rows go on from step to step.
ConfigRule carrying_rule_of(std::string_view key) {
  const bool deals_rows =
      key == "train.seq_len" || key == "train.global_batch" || lies_in(key, "data.train");
  return deals_rows ? ConfigRule::locked : rule_of(key);
}

}  // namespace

ConfigRule rule_of(std::string_view key) {
  if (lies_in(key, "data.train") && key.ends_with(".weight")) return ConfigRule::logged;
  if (lies_in(key, "model") && key.ends_with(".backend")) return ConfigRule::logged;
  if (lies_in_any(
          key, {"model", "seed", "data.train", "data.carry_state", "data.tokenizer", "tokenizer"}))
    return ConfigRule::locked;
  if (lies_in_any(key, {"name", "device", "parallel", "checkpoint", "log", "data.valid"}))
    return ConfigRule::free;
  if (lies_in_any(key, {"train.steps", "train.micro_batch", "train.recompute"}))
    return ConfigRule::free;
  return key.starts_with("train.eval_") ? ConfigRule::free : ConfigRule::logged;
}

ConfigComparison compare_configs(const FlatConfig& saved, const FlatConfig& present) {
  const bool carries = value_of(present, "data.carry_state") == "true";
  ConfigComparison comparison;
  FlatConfig keys = saved;
  keys.insert(present.begin(), present.end());
  for (const auto& entry : keys) {
    ConfigDifference difference{.key = entry.first,
                                .saved = value_of(saved, entry.first),
                                .present = value_of(present, entry.first)};
    if (difference.saved == difference.present) continue;
    switch (carries ? carrying_rule_of(difference.key) : rule_of(difference.key)) {
      case ConfigRule::locked:
        comparison.locked.push_back(std::move(difference));
        break;
      case ConfigRule::logged:
        comparison.logged.push_back(std::move(difference));
        break;
      case ConfigRule::free:
        comparison.free.push_back(std::move(difference));
        break;
    }
  }
  return comparison;
}

std::string describe(const ConfigDifference& difference) {
  return fmt::format("{}: {} in the checkpoint, {} now", difference.key,
                     difference.saved.value_or("absent"), difference.present.value_or("absent"));
}

void require_same_locked(const ConfigComparison& comparison, const std::string& checkpoint) {
  if (comparison.locked.empty()) return;
  std::string message = fmt::format("{} is of another run; these keys differ:", checkpoint);
  const size_t named = std::min(comparison.locked.size(), kNamedKeys);
  for (size_t index = 0; index < named; ++index)
    message += "\n  " + describe(comparison.locked[index]);
  if (comparison.locked.size() > named)
    message += fmt::format("\n  and {} more", comparison.locked.size() - named);
  message += "\nset them back, or choose another folder with --run";
  throw UsageError(message);
}

}  // namespace sluice
