#include "trainer/verify/reduced_config.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <variant>

#include "trainer/branch_config.h"
#include "trainer/config_node.h"

namespace sluice {

namespace {

constexpr int64_t kWidth = 24;       // d_model
constexpr int64_t kVocabulary = 41;  // smaller ones are kept
constexpr int64_t kHidden = 20;
constexpr int64_t kStateDim = 4;
constexpr int64_t kHeadDim = 4;
constexpr int64_t kChunk = 8;
constexpr int64_t kHeads = 16;
constexpr int64_t kExperts = 8;
constexpr int64_t kMinExperts = 4;  // so that there is a choice
constexpr int64_t kWindow = 11;
constexpr int64_t kMinTokens = 37;   // of a row
constexpr int64_t kRowsOfBatch = 2;  // of a micro-batch
constexpr int64_t kMinBatches = 4;   // micro-batches of a step
// Steps of the recurrences: some states last over several shards, some die within one, and the
// gradients of decays are no rounding.
constexpr double kMinStep = 0.02;
constexpr double kMaxStep = 0.3;
constexpr double kInitStd = 0.2;  // so that every branch matters at this width

// The largest count up to `most` that halving can reach.
int64_t halve_to(int64_t count, int64_t most) {
  while (count > most && count % 2 == 0) count /= 2;
  return count;
}

// Fewer experts, or not, that the same numbers of the world's ranks divide.
int64_t experts_for(int64_t experts, int64_t world) {
  int64_t count = 1;
  for (int64_t ranks = 2; ranks <= std::max(kExperts, world); ++ranks) {
    if (experts % ranks == 0) count = std::lcm(count, ranks);
  }
  return count < kMinExperts ? experts : count;
}

template <class Config>
void set_steps(Config& config) {
  config.dt_init_min = kMinStep;
  config.dt_init_max = kMaxStep;
}

void reduce(Mamba2Config& config, int64_t d_model, int) {
  const int64_t heads = config.num_heads(d_model);
  const int64_t groups = halve_to(config.groups, 2);
  config.heads = groups * std::min<int64_t>(heads / config.groups, 4);
  config.groups = groups;
  config.head_dim = std::min(config.head_dim, kHeadDim);
  config.state_dim = std::min(config.state_dim, kStateDim);
  config.chunk = std::min(config.chunk, kChunk);
  set_steps(config);
}

void reduce(MambaConfig& config, int64_t, int) {
  if (config.inner > 0) config.inner = std::min(config.inner, 2 * kWidth);
  if (config.dt_rank > 0) config.dt_rank = std::min<int64_t>(config.dt_rank, 3);
  config.state_dim = std::min(config.state_dim, kStateDim);
  set_steps(config);
}

void reduce(AttentionConfig& config, int64_t d_model, int) {
  const int64_t width = config.head_dim > 0 ? config.head_dim : d_model / config.heads;
  const int64_t kv_heads = config.kv_heads > 0 ? config.kv_heads : config.heads;
  const int64_t queries_per_kv = config.heads / kv_heads;
  const int64_t heads = halve_to(config.heads, kHeads);
  config.kv_heads = std::max<int64_t>(1, heads / queries_per_kv);
  config.heads = config.kv_heads * queries_per_kv;
  // The rotated columns are an even number.
  int64_t head_dim = std::min(width, kHeadDim);
  const auto fits = [&] { return std::fmod(config.rope.fraction * double(head_dim), 2) == 0; };
  while (head_dim < width && !fits()) ++head_dim;
  config.head_dim = head_dim;
  if (config.window > 0) config.window = std::min(config.window, kWindow);
}

void reduce(MlpConfig& config, int64_t, int) { config.hidden = std::min(config.hidden, kHidden); }

void reduce(MoeConfig& config, int64_t, int world) {
  config.experts = experts_for(config.experts, world);
  config.groups = std::gcd(config.groups, config.experts);
  config.topk_group = std::min(config.topk_group, config.groups);
  const int64_t choice = config.experts / config.groups * config.topk_group;
  config.top_k = std::min(config.top_k, std::max<int64_t>(1, choice / 2));
  config.hidden = std::min(config.hidden, kHidden);
  config.shared_hidden = std::min(config.shared_hidden, kHidden);
}

std::string text_of(const BranchConfig& branch) {
  return to_json(write_config(branch, OriginMap{}, "branch"));
}

}  // namespace

Config reduce_config(const Config& config, int world) {
  Config reduced = config;
  ModelConfig& model = reduced.model;
  std::vector<BranchConfig> distinct;
  std::vector<std::string> texts;
  for (const BranchConfig& branch : resolve_stack(config.model)) {
    const std::string text = text_of(branch);
    if (std::find(texts.begin(), texts.end(), text) != texts.end()) continue;
    texts.push_back(text);
    distinct.push_back(branch);
  }
  for (BranchConfig& branch : distinct) {
    std::visit([&](auto& kind) { reduce(kind, config.model.d_model, world); }, branch.config);
  }
  model.stack = StackConfig{};
  model.stack.branches = distinct;
  model.stack.branches.insert(model.stack.branches.end(), distinct.begin(), distinct.end());
  model.d_model = std::min(config.model.d_model, kWidth);
  model.vocab_size = std::min(config.model.vocab_size, kVocabulary);
  model.init_std = kInitStd;
  model.init_from.clear();
  model.validate();
  // Any dp of this world divides the rows; where there are few ranks they accumulate.
  const int64_t batches = world * ((kMinBatches + world - 1) / world);
  reduced.train.micro_batch = kRowsOfBatch;
  reduced.train.global_batch = kRowsOfBatch * batches;
  reduced.train.seq_len = std::max<int64_t>(kMinTokens, 4 * world + 5);
  reduced.parallel = ParallelConfig{};
  return reduced;
}

}  // namespace sluice
