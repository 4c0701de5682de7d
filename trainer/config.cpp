#include "trainer/config.h"

#include "trainer/branch_config.h"
#include "trainer/config_layers.h"
#include "trainer/config_schema.h"
#include "trainer/stack_notation.h"
#include "trainer/yaml_document.h"

namespace sluice {

std::span<const char* const> enum_names(DeviceChoice) {
  static constexpr const char* kNames[] = {"auto", "cpu", "cuda"};
  return kNames;
}
std::span<const char* const> enum_names(Precision) {
  static constexpr const char* kNames[] = {"f32", "bf16"};
  return kNames;
}
DType compute_dtype(Precision precision) {
  return precision == Precision::bf16 ? DType::bf16 : DType::f32;
}
std::span<const char* const> enum_names(NanPolicy) {
  static constexpr const char* kNames[] = {"skip", "stop"};
  return kNames;
}
std::span<const char* const> enum_names(Reproducible) {
  static constexpr const char* kNames[] = {"run", "layout"};
  return kNames;
}
std::span<const char* const> enum_names(OptimizerType) {
  static constexpr const char* kNames[] = {"adamw"};
  return kNames;
}
std::span<const char* const> enum_names(ScheduleType) {
  static constexpr const char* kNames[] = {"cosine", "wsd", "constant"};
  return kNames;
}

void DataSource::validate() const {
  if (path.empty()) throw FieldError("path", "expected the path of a token store, got nothing");
  if (!(weight > 0))
    throw FieldError("weight", "expected a weight above 0, or leave the store out");
}

void TrainConfig::validate() const {
  if (global_batch % micro_batch != 0) {
    throw FieldError("global_batch", concat("expected a multiple of train.micro_batch, got ",
                                            global_batch, " and ", micro_batch));
  }
}

void OptimizerConfig::validate() const {
  for (size_t i = 0; i < betas.size(); ++i) {
    if (betas[i] < 1) continue;
    throw FieldError(item_path("betas", i), concat("expected a number below 1, got ", betas[i]));
  }
  if (eps <= 0) throw FieldError("eps", "expected a number above 0, as 1e-8, got 0");
}

void ParallelConfig::validate() const {
  if (dp && *dp % ep != 0) {
    throw FieldError("ep", concat("expected a divisor of parallel.dp = ", *dp, ", got ", ep));
  }
}

MeshShape mesh_shape(const ParallelConfig& parallel, int world) {
  return resolve_mesh(
      {.dp = int(parallel.dp.value_or(kAuto)), .ep = int(parallel.ep), .cp = int(parallel.cp)},
      world);
}

void Config::validate() const {
  const bool bad_name = name.empty() || name.front() == '/' ||
                        name.find("..") != std::string::npos || name.size() > 200;
  if (bad_name) {
    throw FieldError("name",
                     "expected a relative name for the run folder, got '" + shown(name) + "'");
  }
  if (train.seq_len < parallel.cp) {
    throw FieldError("parallel.cp", concat("expected at most one rank per token: train.seq_len is ",
                                           train.seq_len, ", got ", parallel.cp));
  }
  const int64_t passes = train.global_batch / train.micro_batch;
  if (parallel.dp && passes % *parallel.dp != 0) {
    throw FieldError("parallel.dp",
                     concat("expected a divisor of train.global_batch / train.micro_batch = ",
                            passes, ", got ", *parallel.dp));
  }
}

namespace {

Config read_tree(const ConfigNode& tree, ConfigNode* resolved) {
  Config config;
  ConfigReader reader(tree);
  reader.read(config);
  if (resolved != nullptr) *resolved = resolved_tree(config, reader.origins());
  return config;
}

}  // namespace

LoadedConfig load_config(const std::string& path, const std::vector<std::string>& overrides) {
  LoadedConfig loaded;
  ConfigNode tree = load_config_file(path, loaded.sources);
  put_over(tree, parse_overrides(overrides, loaded.sources));
  loaded.config = read_tree(tree, &loaded.resolved);
  return loaded;
}

ConfigNode resolved_tree(const Config& config, const OriginMap& origins) {
  ConfigNode tree = write_section(config, origins);
  keep_used_stack(tree);
  return tree;
}

std::string resolved_yaml(const Config& config) {
  return to_yaml(resolved_tree(config), ShowOrigins::no);
}

Config parse_config(const std::string& name, const std::string& text) {
  Sources sources;
  return read_tree(parse_yaml(sources.add({.name = name, .text = text})), nullptr);
}

std::string config_json_schema() {
  OrderedJson schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                        {"title", "sluice configuration"}};
  const Config defaults;
  OrderedJson keys = schema_of_section(defaults);
  OrderedJson base = {{"type", "string"},
                      {"description", "a file that this one is put over, relative to it"}};
  keys["properties"]["base"] = std::move(base);
  schema.update(keys);
  return schema.dump(2);
}

}  // namespace sluice
