#include "trainer/same_program.h"

#include <fmt/format.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "data/files.h"
#include "trainer/agreement.h"
#include "trainer/version.h"

namespace sluice {

namespace {

constexpr size_t kNamedKeys = 8;
constexpr size_t kNamedRanks = 8;
constexpr int64_t kMaxExecutable = int64_t{4} << 30;

void flatten(const ConfigNode& node, const std::string& path, FlatConfig& flat) {
  if (node.is_scalar() || node.is_null()) {
    flat[path] = node.text;
    return;
  }
  for (size_t i = 0; i < node.children.size(); ++i) {
    const std::string key = node.is_list() ? std::to_string(i) : node.children[i].key;
    flatten(node.children[i], path.empty() ? key : path + "." + key, flat);
  }
}

std::string executable_hash() {
  try {
    return xxh3_128_hex(read_whole_file("/proc/self/exe", kMaxExecutable));
  } catch (const Error&) {
    return "unknown";  // not Linux
  }
}

// "rank 3", "ranks 0, 1, 2 and 509 more"
std::string ranks_text(const std::vector<size_t>& ranks) {
  const size_t named = std::min(ranks.size(), kNamedRanks);
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < named; ++i) text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return named < ranks.size() ? text + fmt::format(" and {} more", ranks.size() - named) : text;
}

// "train.seq_len: 2048 on ranks 0, 1; 1024 on rank 2"; empty if it is the same everywhere.
std::string difference(const std::string& key, const std::vector<FlatConfig>& facts) {
  std::map<std::string, std::vector<size_t>> ranks_by_value;
  std::vector<std::string> values;  // in the order of the ranks
  for (size_t rank = 0; rank < facts.size(); ++rank) {
    const auto found = facts[rank].find(key);
    const std::string value = found == facts[rank].end() ? "absent" : found->second;
    std::vector<size_t>& ranks = ranks_by_value[value];
    if (ranks.empty()) values.push_back(value);
    ranks.push_back(rank);
  }
  if (values.size() == 1) return "";
  std::string text = key + ": ";
  for (size_t i = 0; i < values.size(); ++i) {
    text += fmt::format("{}{} on {}", i == 0 ? "" : "; ", values[i].empty() ? "none" : values[i],
                        ranks_text(ranks_by_value[values[i]]));
  }
  return text;
}

[[noreturn]] void tell(const std::vector<FlatConfig>& facts) {
  FlatConfig keys;
  for (const FlatConfig& of_rank : facts) keys.insert(of_rank.begin(), of_rank.end());
  std::string message = "ranks were started differently; these keys differ:";
  size_t count = 0;
  for (const auto& entry : keys) {
    const std::string line = difference(entry.first, facts);
    if (!line.empty() && ++count <= kNamedKeys) message += "\n  " + line;
  }
  if (count > kNamedKeys) message += fmt::format("\n  and {} more", count - kNamedKeys);
  throw AgreedFailure(ExitCode::usage,
                      message + "\ngive all ranks the same program, configuration and overrides");
}

}  // namespace

FlatConfig flat_config(const Config& config) {
  FlatConfig flat;
  flatten(resolved_tree(config), "", flat);
  return flat;
}

FlatConfig program_facts() {
  FlatConfig facts = {{"program.version", version()},
                      {"program.commit", git_commit()},
                      {"program.executable", executable_hash()}};
  for (const auto& [name, value] : built_in()) facts["program." + name] = value;
  return facts;
}

void require_same(CheckpointPeers& peers, const FlatConfig& facts) {
  const std::string text =
      nlohmann::json(facts).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::vector<std::string> hashes = peers.all_gather(xxh3_128_hex(text));
  if (std::count(hashes.begin(), hashes.end(), hashes[0]) == int64_t(hashes.size())) return;
  std::vector<FlatConfig> all;
  for (const std::string& of_rank : peers.all_gather(text))
    all.push_back(nlohmann::json::parse(of_rank).get<FlatConfig>());
  tell(all);
}

Config load_same_config(CheckpointPeers& peers, const std::string& path,
                        const std::vector<std::string>& overrides, const FlatConfig& more) {
  Config config;
  agree(peers, [&] { config = load_config(path, overrides).config; });
  FlatConfig facts = flat_config(config);
  facts.merge(program_facts());
  facts.insert(more.begin(), more.end());
  require_same(peers, facts);
  return config;
}

}  // namespace sluice
