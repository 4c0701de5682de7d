// The whole configuration of a run. Sections are plain structs; their member lists are the keys of
// the YAML file (config_reader.h). load_config() puts base files, the file and the command line's
// overrides over each other and checks the result.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layers/model.h"
#include "layers/model_config.h"
#include "parallel/mesh.h"
#include "trainer/config_node.h"
#include "trainer/config_reader.h"

namespace sluice {

enum class DeviceChoice : uint8_t { auto_, cpu, cuda };
std::span<const char* const> enum_names(DeviceChoice);

enum class Precision : uint8_t { f32, bf16 };  // of compute; masters and states stay f32
std::span<const char* const> enum_names(Precision);
DType compute_dtype(Precision precision);

enum class NanPolicy : uint8_t { skip, stop };
std::span<const char* const> enum_names(NanPolicy);

// Which steps on GPUs have equal bits; on the CPU they are those of `layout`.
enum class Reproducible : uint8_t {
  run,     // of the same layout
  layout,  // of every number of dp ranks (trainer/gradient_accumulation.h)
};
std::span<const char* const> enum_names(Reproducible);

enum class OptimizerType : uint8_t { adamw };
std::span<const char* const> enum_names(OptimizerType);

enum class ScheduleType : uint8_t { cosine, wsd, constant };
std::span<const char* const> enum_names(ScheduleType);

struct DataSource {
  static constexpr const char* kShorthand = "path";
  std::string path = {};
  double weight = 1;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "path", .help = "a token store, relative to the working directory"}, path);
    v(Field{.name = "weight", .help = "share of the rows, relative to the others", .min = 0},
      weight);
  }
  void validate() const;
};

struct DataConfig {
  std::vector<DataSource> train = {};
  std::string valid = {};
  int64_t prefetch = 4;
  bool carry_state = false;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "train", .help = "a token store, or a list of {path, weight}"}, train);
    v(Field{.name = "valid", .help = "the held-out token store"}, valid);
    v(Field{.name = "prefetch", .help = "batches made ahead", .min = 1, .max = 1024}, prefetch);
    v(Field{.name = "carry_state",
            .help = "rows go on from the state that the step before ended with"},
      carry_state);
  }
};

struct TrainConfig {
  int64_t steps = 1000;
  int64_t seq_len = 2048;
  int64_t global_batch = 64;
  int64_t micro_batch = 4;
  Recompute recompute = Recompute::none;
  int64_t eval_every = 200;
  int64_t eval_rows = 0;
  NanPolicy nan_policy = NanPolicy::skip;
  int64_t max_bad_steps = 5;
  int64_t threads = 0;
  bool graph = true;
  Reproducible reproducible = Reproducible::run;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "steps", .help = "optimizer steps of the whole run", .min = 1}, steps);
    v(Field{.name = "seq_len", .help = "tokens of a row, world-wide", .min = 1, .max = 1 << 30},
      seq_len);
    v(Field{.name = "global_batch", .help = "rows of a step, world-wide", .min = 1}, global_batch);
    v(Field{.name = "micro_batch", .help = "rows of a forward pass on one rank", .min = 1},
      micro_batch);
    v(Field{.name = "recompute", .help = "what the backward pass computes again"}, recompute);
    v(Field{.name = "eval_every",
            .help = "steps between evaluations; 0: only at the end",
            .min = 0},
      eval_every);
    v(Field{.name = "eval_rows", .help = "held-out rows of an evaluation; 0: all", .min = 0},
      eval_rows);
    v(Field{.name = "nan_policy", .help = "a step that is not finite is skipped, or stops the run"},
      nan_policy);
    v(Field{.name = "max_bad_steps",
            .help = "skipped steps in a row before the run stops",
            .min = 1},
      max_bad_steps);
    v(Field{.name = "threads",
            .help = "CPU threads of a rank; 0: cores / ranks of the host",
            .min = 0,
            .max = 4096},
      threads);
    v(Field{.name = "graph", .help = "on a GPU: launch a step as one graph, where it is the same"},
      graph);
    v(Field{.name = "reproducible",
            .help = "on a GPU: equal bits for a layout (run), or at a cost for every dp (layout)"},
      reproducible);
  }
  void validate() const;
};

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 6e-4;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip = 1;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "type", .help = "adamw"}, type);
    v(Field{.name = "lr", .help = "peak learning rate", .min = 0, .max = 1000}, lr);
    v(Field{.name = "betas", .help = "decay of the two moments, below 1", .min = 0, .max = 1},
      betas);
    v(Field{.name = "eps", .help = "added to the root of the second moment", .min = 0, .max = 1},
      eps);
    v(Field{.name = "weight_decay", .help = "of matrices and embeddings", .min = 0, .max = 1000},
      weight_decay);
    v(Field{.name = "clip", .help = "largest norm of the gradient; 0: no clipping", .min = 0},
      clip);
  }
  void validate() const;
};

struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  int64_t warmup = 100;
  double final = 0.1;
  double decay = 0.2;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "type", .help = "course of the learning rate after the warm-up"}, type);
    v(Field{.name = "warmup", .help = "steps from 0 to lr; may exceed train.steps", .min = 0},
      warmup);
    v(Field{.name = "final", .help = "last learning rate as a share of lr", .min = 0, .max = 1},
      final);
    v(Field{.name = "decay",
            .help = "wsd: share of the steps that decay, at the end",
            .min = 0,
            .max = 1},
      decay);
  }
};

struct ParallelConfig {
  std::optional<int64_t> dp = {};
  int64_t ep = 1;
  int64_t cp = 1;
  int64_t zero = 1;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "dp",
            .help = "ranks that share the rows of a step",
            .min = 1,
            .max = 1 << 20,
            .unset = "auto"},
      dp);
    v(Field{.name = "ep",
            .help = "ranks that share the experts; divides dp",
            .min = 1,
            .max = 1 << 20},
      ep);
    v(Field{.name = "cp", .help = "ranks that share a row's tokens", .min = 1, .max = 1 << 20}, cp);
    v(Field{.name = "zero",
            .help = "sharded: 0 nothing, 1 optimizer state, 2 gradients too",
            .min = 0,
            .max = 2},
      zero);
  }
  void validate() const;
};
// With the number of dp ranks that a world of so many leaves. Throws UsageError if it cannot be.
MeshShape mesh_shape(const ParallelConfig& parallel, int world);

struct CheckpointConfig {
  int64_t every = 200;
  int64_t keep = 3;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "every", .help = "steps between checkpoints; 0: only at the end", .min = 0},
      every);
    v(Field{.name = "keep", .help = "verified checkpoints that are kept", .min = 2}, keep);
  }
};

struct LogConfig {
  int64_t every = 1;
  bool tensorboard = true;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "every",
            .help = "steps between lines on the terminal and in log.txt",
            .min = 1},
      every);
    v(Field{.name = "tensorboard", .help = "write TensorBoard events"}, tensorboard);
  }
};

struct Config {
  std::string name = "run";
  int64_t seed = 1;
  DeviceChoice device = DeviceChoice::auto_;
  Precision precision = Precision::f32;
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  LogConfig log;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "name", .help = "of the run; its folder is runs/<name>"}, name);
    v(Field{.name = "seed", .help = "of initial values, data order and noise", .min = 0}, seed);
    v(Field{.name = "device", .help = "auto takes a GPU where there is one"}, device);
    v(Field{.name = "precision", .help = "of compute; masters and states stay f32"}, precision);
    v(Field{.name = "model", .help = "the model"}, model);
    v(Field{.name = "data", .help = "token stores"}, data);
    v(Field{.name = "train", .help = "steps, batch and evaluation"}, train);
    v(Field{.name = "optimizer", .help = "the optimizer"}, optimizer);
    v(Field{.name = "schedule", .help = "the learning rate over the steps"}, schedule);
    v(Field{.name = "parallel", .help = "how ranks share the work"}, parallel);
    v(Field{.name = "checkpoint", .help = "when checkpoints are written, and how many stay"},
      checkpoint);
    v(Field{.name = "log", .help = "what is reported"}, log);
  }
  void validate() const;
};

struct LoadedConfig {
  Config config;
  ConfigNode resolved;  // every key with its value and origin
  Sources sources;      // what the origins point into
};

// Throws UsageError (bad keys or values, with their place) or IoError (no such file).
LoadedConfig load_config(const std::string& path, const std::vector<std::string>& overrides = {});

// Every key, with defaults filled in: reads back as the same configuration.
ConfigNode resolved_tree(const Config& config, const OriginMap& origins = {});
std::string resolved_yaml(const Config& config);
// From a resolved YAML text, as checkpoints and run folders hold it; `name` for messages.
Config parse_config(const std::string& name, const std::string& text);

// JSON Schema of configuration files.
std::string config_json_schema();

}  // namespace sluice
