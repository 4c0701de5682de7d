// Whether a run may go on from a checkpoint with another configuration.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

// Dotted keys of a resolved configuration -> the value as text: "train.seq_len" -> "2048". List
// entries count: "data.train.0.path" or "data.train[0].path".
using FlatConfig = std::map<std::string, std::string>;

enum class ConfigRule : uint8_t {
  locked,  // the checkpoint would be of another model or another run: exit 2
  logged,  // allowed, and said
  free,    // no consequence for what is computed
};

// model but for backends of kernels, data.train but for weights, data.carry_state, the tokenizer
// and the seed are locked; name, device, parallel, checkpoint, log, data.valid and in train steps,
// micro_batch, recompute and eval_* are free; everything else is logged.
ConfigRule rule_of(std::string_view key);

struct ConfigDifference {
  std::string key;
  std::optional<std::string> saved;    // none: the checkpoint's configuration lacks the key
  std::optional<std::string> present;  // none: the present one lacks it
};

struct ConfigComparison {
  std::vector<ConfigDifference> locked;
  std::vector<ConfigDifference> logged;
  std::vector<ConfigDifference> free;
};

// Differences in the order of the keys. With data.carry_state also what decides which row goes on
// where is locked: seq_len, global_batch and the weights of stores.
ConfigComparison compare_configs(const FlatConfig& saved, const FlatConfig& present);

// "model.d_model: 768 in the checkpoint, 512 now"
std::string describe(const ConfigDifference& difference);

// Throws UsageError, naming `checkpoint` and the first differing keys, if locked ones differ.
void require_same_locked(const ConfigComparison& comparison, const std::string& checkpoint);

}  // namespace sluice
