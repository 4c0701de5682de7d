// The `model` section of a configuration, and the table of residual branches it stands for.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/registry.h"

namespace sluice {

// Which mixer positions are attention: every `period`-th from `offset` on (Jamba's way), or a share
// `ratio` of them, spread evenly so that the stack starts and ends with the other mixer.
struct AttentionPlacement {
  int64_t period = 0;
  int64_t offset = 0;
  double ratio = 0;
  std::string placement = "even";

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "period", .help = "one attention layer in this many; 0: none", .min = 0},
      period);
    v(Field{.name = "offset", .help = "index of the first attention layer, below period", .min = 0},
      offset);
    v(Field{.name = "ratio", .help = "share of attention layers, for sweeps", .min = 0, .max = 1},
      ratio);
    v(Field{.name = "placement", .help = "even: spread over the stack"}, placement);
  }
};

struct MoePlacement {
  int64_t period = 0;
  int64_t offset = 0;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "period",
            .help = "one MoE layer in this many feed-forward layers; 0: none",
            .min = 0},
      period);
    v(Field{.name = "offset", .help = "index of the first, below period", .min = 0}, offset);
  }
};

// Four notations of which exactly one is used:
//   pattern                                letters: M mamba2, S mamba, * attention, - mlp, E moe
//   layers, mixer, attention, ffn, moe     attention by {period, offset} or by {ratio, placement}
//   branches                               an explicit list, each with overrides
//                                          of its kind's section
struct StackConfig {
  std::string pattern;
  int64_t layers = 0;
  std::string mixer = "mamba2";
  AttentionPlacement attention;
  std::string ffn = "none";
  MoePlacement moe;
  std::vector<BranchConfig> branches;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "pattern", .help = "letters: M mamba2, S mamba, * attention, - mlp, E moe"},
      pattern);
    v(Field{.name = "layers",
            .help = "layers: each a mixer and, unless ffn is none, a feed-forward",
            .min = 0},
      layers);
    v(Field{.name = "mixer", .help = "the mixer of layers that are not attention"}, mixer);
    v(Field{.name = "attention", .help = "which layers are attention"}, attention);
    v(Field{.name = "ffn", .help = "feed-forward of every layer: mlp, moe or none"}, ffn);
    v(Field{.name = "moe", .help = "which feed-forwards are MoE"}, moe);
    v(Field{.name = "branches",
            .help = "explicit branches: {type: KIND, overrides of its section}"},
      branches);
  }
};

enum class ResidualDType : uint8_t { f32, model };
std::span<const char* const> enum_names(ResidualDType);

struct ModelConfig {
  int64_t d_model = 768;
  int64_t vocab_size = 257;
  StackConfig stack;
  BranchKinds::Configs sections;  // mamba2, mamba, attention, mlp, moe
  bool tie_embeddings = true;
  double norm_eps = 1e-5;
  ResidualDType residual = ResidualDType::f32;
  double init_std = 0.02;
  std::string init_from;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "d_model", .help = "model width (D)", .min = 1}, d_model);
    v(Field{.name = "vocab_size", .help = "rows of the embedding (V)", .min = 1}, vocab_size);
    // Sections before the stack: explicit branches start from copies of them.
    BranchKinds::for_each([&]<class Kind>() {
      v(Field{.name = Kind::kName, .help = "defaults of branches of this kind"},
        std::get<typename Kind::Config>(sections));
    });
    v(Field{.name = "stack", .help = "the residual branches, in one of four notations"}, stack);
    v(Field{.name = "tie_embeddings", .help = "the head shares the embedding's weights"},
      tie_embeddings);
    v(Field{.name = "norm_eps", .help = "epsilon of the norms", .min = 0}, norm_eps);
    v(Field{.name = "residual", .help = "dtype of the residual stream: f32, or the model's own"},
      residual);
    v(Field{.name = "init_std", .help = "standard deviation of initial matrices", .min = 0},
      init_std);
    v(Field{.name = "init_from", .help = "a Hugging Face folder, run or checkpoint to start from"},
      init_from);
  }
  // Throws UsageError: sizes that do not divide, an unknown letter with its column, ...
  void validate() const;
};

// The table of branches that a configuration stands for. Throws UsageError.
std::vector<BranchConfig> resolve_stack(const ModelConfig& config);
// One line per run of equal branches, for people: "0 mamba2  1 moe  ..."
std::string describe_stack(const std::vector<BranchConfig>& branches);
// Letters, where every branch equals its section; the hash that checkpoints compare is of the
// resolved YAML.
std::string stack_letters(const std::vector<BranchConfig>& branches);

}  // namespace sluice
