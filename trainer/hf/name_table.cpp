#include "trainer/hf/name_table.h"

#include <span>

#include "kernels/core/error.h"

namespace sluice {

namespace {

constexpr const char* kHead = "lm_head.weight";  // without the prefix, in every family
constexpr size_t kMaxTensors = 4'000'000;        // of a table, by a hostile number of experts

enum class Layout : uint8_t {
  same,
  conv,    // (C, K) here, [C, 1, K] there
  expert,  // one tensor an expert there: {e} is its index
  fused,   // all experts in one tensor there
};

// A parameter, or a part of its rows, under "branches.<i>.<kind>." here and below the module's name
// there. Rules whose parameter the model does not have (a bias, a norm) are left out.
struct NameRule {
  const char* ours;
  const char* part;  // "" for all rows
  const char* theirs;
  Layout layout = Layout::same;
};

constexpr NameRule kMamba2[] = {{"in_proj.weight", "", "in_proj.weight"},
                                {"in_proj.bias", "", "in_proj.bias"},
                                {"conv1d.weight", "", "conv1d.weight", Layout::conv},
                                {"conv1d.bias", "", "conv1d.bias"},
                                {"dt_bias", "", "dt_bias"},
                                {"A_log", "", "A_log"},
                                {"D", "", "D"},
                                {"norm.weight", "", "norm.weight"},
                                {"out_proj.weight", "", "out_proj.weight"},
                                {"out_proj.bias", "", "out_proj.bias"}};

constexpr NameRule kMamba[] = {{"in_proj.weight", "", "in_proj.weight"},
                               {"in_proj.bias", "", "in_proj.bias"},
                               {"conv1d.weight", "", "conv1d.weight", Layout::conv},
                               {"conv1d.bias", "", "conv1d.bias"},
                               {"x_proj.weight", "", "x_proj.weight"},
                               {"dt_proj.weight", "", "dt_proj.weight"},
                               {"dt_proj.bias", "", "dt_proj.bias"},
                               {"A_log", "", "A_log"},
                               {"D", "", "D"},
                               {"dt_norm.weight", "", "dt_layernorm.weight"},
                               {"B_norm.weight", "", "b_layernorm.weight"},
                               {"C_norm.weight", "", "c_layernorm.weight"},
                               {"out_proj.weight", "", "out_proj.weight"},
                               {"out_proj.bias", "", "out_proj.bias"}};

constexpr NameRule kAttention[] = {
    {"qkv.weight", "q", "q_proj.weight"},     {"qkv.weight", "k", "k_proj.weight"},
    {"qkv.weight", "v", "v_proj.weight"},     {"qkv.bias", "q", "q_proj.bias"},
    {"qkv.bias", "k", "k_proj.bias"},         {"qkv.bias", "v", "v_proj.bias"},
    {"out_proj.weight", "", "o_proj.weight"}, {"out_proj.bias", "", "o_proj.bias"}};

constexpr NameRule kGatedMlp[] = {
    {"gate_up.weight", "gate", "gate_proj.weight"}, {"gate_up.weight", "up", "up_proj.weight"},
    {"gate_up.bias", "gate", "gate_proj.bias"},     {"gate_up.bias", "up", "up_proj.bias"},
    {"down.weight", "", "down_proj.weight"},        {"down.bias", "", "down_proj.bias"}};

constexpr NameRule kPlainMlp[] = {{"up.weight", "", "up_proj.weight"},
                                  {"up.bias", "", "up_proj.bias"},
                                  {"down.weight", "", "down_proj.weight"},
                                  {"down.bias", "", "down_proj.bias"}};

constexpr NameRule kJambaMoe[] = {
    {"router.weight", "", "router.weight"},
    {"experts.gate_up.weight", "gate", "experts.{e}.gate_proj.weight", Layout::expert},
    {"experts.gate_up.weight", "up", "experts.{e}.up_proj.weight", Layout::expert},
    {"experts.down.weight", "", "experts.{e}.down_proj.weight", Layout::expert},
    {"experts.gate_up.weight", "", "experts.gate_up_proj", Layout::fused},
    {"experts.down.weight", "", "experts.down_proj", Layout::fused}};

constexpr NameRule kNemotronMoe[] = {
    {"router.weight", "", "gate.weight"},
    {"router.bias", "", "gate.e_score_correction_bias"},
    {"experts.up.weight", "", "experts.{e}.up_proj.weight", Layout::expert},
    {"experts.down.weight", "", "experts.{e}.down_proj.weight", Layout::expert},
    {"experts.up.weight", "", "experts.up_proj", Layout::fused},
    {"experts.down.weight", "", "experts.down_proj", Layout::fused},
    {"shared.up.weight", "", "shared_experts.up_proj.weight"},
    {"shared.down.weight", "", "shared_experts.down_proj.weight"}};

// Where a kind of branch lives in a layer of the family.
struct Module {
  const char* kind = "";  // ours
  int slot = 0;           // which branch of the layer it is
  const char* norm = "";
  const char* name = "";
  std::span<const NameRule> rules;
};

constexpr const char* kNorm = "norm.weight";
constexpr const char* kBefore = "input_layernorm.weight";
constexpr const char* kBetween = "pre_ff_layernorm.weight";

constexpr Module kMambaModules[] = {{"mamba", 0, kNorm, "mixer.", kMamba}};
constexpr Module kMamba2Modules[] = {{"mamba2", 0, kNorm, "mixer.", kMamba2}};
constexpr Module kJambaModules[] = {{"mamba", 0, kBefore, "mamba.", kMamba},
                                    {"attention", 0, kBefore, "self_attn.", kAttention},
                                    {"mlp", 1, kBetween, "feed_forward.", kGatedMlp},
                                    {"moe", 1, kBetween, "feed_forward.", kJambaMoe}};
constexpr Module kBambaModules[] = {{"mamba2", 0, kBefore, "mamba.", kMamba2},
                                    {"attention", 0, kBefore, "self_attn.", kAttention},
                                    {"mlp", 1, kBetween, "feed_forward.", kGatedMlp}};
constexpr Module kNemotronModules[] = {{"mamba2", 0, kNorm, "mixer.", kMamba2},
                                       {"attention", 0, kNorm, "mixer.", kAttention},
                                       {"mlp", 0, kNorm, "mixer.", kPlainMlp},
                                       {"moe", 0, kNorm, "mixer.", kNemotronMoe}};

struct Family {
  const char* prefix = "";
  const char* embedding = "";
  const char* final_norm = "";
  int branches_per_layer = 1;
  std::span<const Module> modules;
};

Family family_of(HfFamily family) {
  switch (family) {
    case HfFamily::mamba:
    case HfFamily::falcon_mamba:
      return {"backbone.", "embeddings.weight", "norm_f.weight", 1, kMambaModules};
    case HfFamily::mamba2:
      return {"backbone.", "embeddings.weight", "norm_f.weight", 1, kMamba2Modules};
    case HfFamily::jamba:
      return {"model.", "embed_tokens.weight", "final_layernorm.weight", 2, kJambaModules};
    case HfFamily::bamba:
      return {"model.", "embed_tokens.weight", "final_layernorm.weight", 2, kBambaModules};
    case HfFamily::nemotron_h:
      return {"backbone.", "embeddings.weight", "norm_f.weight", 1, kNemotronModules};
  }
  throw Error(ExitCode::bug, "unknown Hugging Face family");
}

// Builds the table and keeps count of the elements that have found a name.
class TableBuilder {
 public:
  explicit TableBuilder(const ParameterStore& store)
      : store_(store), named_(store.parameters().size(), 0) {}

  bool has(const std::string& parameter) const { return store_.find(parameter).index >= 0; }

  // The whole parameter; [C, 1, K] for a convolution.
  void add_whole(const std::string& parameter, const std::string& name, Layout layout) {
    const ParameterId id = store_.find(parameter);
    const Dims& dims = store_.parameter(id).dims;
    std::vector<int64_t> shape(dims.size.begin(), dims.size.begin() + dims.rank);
    if (layout == Layout::conv) shape.insert(shape.begin() + 1, 1);
    add(id, 0, name, shape);
  }
  // Rows of a vector or a matrix.
  void add_part(const std::string& parameter, const std::string& part, const std::string& name) {
    const ParameterId id = store_.find(parameter);
    const Dims& dims = store_.parameter(id).dims;
    SLUICE_CHECK(dims.rank <= 2, "parts of ", to_string(dims));
    const int64_t width = dims.rank == 1 ? 1 : dims[1];
    const Rows rows = rows_of(id, part);
    std::vector<int64_t> shape{rows.count};
    if (dims.rank == 2) shape.push_back(width);
    add(id, rows.begin * width, name, shape);
  }
  // One tensor an expert, of all or a part of its rows.
  void add_experts(const std::string& parameter, const std::string& part,
                   const std::string& pattern) {
    const ParameterId id = store_.find(parameter);
    const auto [experts, height, width] = view_of(id).shape<3>("experts");
    const Rows rows = part.empty() ? Rows{.begin = 0, .count = height} : rows_of(id, part);
    const size_t hole = pattern.find("{e}");
    for (int64_t e = 0; e < experts; ++e) {
      std::string name = pattern;
      add(id, (e * height + rows.begin) * width, name.replace(hole, 3, std::to_string(e)),
          {rows.count, width});
    }
  }

  std::vector<SourceTensor> finish(HfFamily family) {
    for (size_t i = 0; i < named_.size(); ++i) {
      const Parameter& parameter = store_.parameters()[i];
      if (named_[i] == parameter.dims.numel()) continue;
      throw UsageError(concat(enum_names(HfFamily{})[size_t(family)], " has no name for ",
                              named_[i] == 0 ? "" : "all of ", parameter.name, " ",
                              to_string(parameter.dims)));
    }
    return std::move(tensors_);
  }

 private:
  struct Rows {
    int64_t begin = 0;
    int64_t count = 0;
  };

  ConstTensorView view_of(ParameterId id) const {
    return ConstTensorView(nullptr, store_.parameter(id).dims, store_.dtype());
  }
  Rows rows_of(ParameterId id, const std::string& part) const {
    Rows rows;
    for (const ParameterPart& candidate : store_.parameter(id).parts) {
      rows.begin += rows.count;
      rows.count = candidate.rows;
      if (candidate.name == part) return rows;
    }
    throw Error(ExitCode::bug, concat(store_.parameter(id).name, " has no part ", part));
  }
  void add(ParameterId id, int64_t begin, const std::string& name, std::vector<int64_t> shape) {
    if (tensors_.size() == kMaxTensors) throw DataError("more than 4 million tensors in a model");
    tensors_.push_back({.name = name, .shape = std::move(shape), .parameter = id, .begin = begin});
    named_[id.index] += tensors_.back().numel();
  }

  const ParameterStore& store_;
  std::vector<SourceTensor> tensors_;
  std::vector<int64_t> named_;  // elements of each parameter
};

void add_module(TableBuilder& table, const Module& module, const std::string& ours,
                const std::string& theirs, bool fused) {
  for (const NameRule& rule : module.rules) {
    if (!table.has(ours + rule.ours)) continue;
    const std::string name = theirs + rule.theirs;
    if (rule.layout == Layout::expert) {
      if (!fused) table.add_experts(ours + rule.ours, rule.part, name);
    } else if (rule.layout == Layout::fused) {
      if (fused) table.add_whole(ours + rule.ours, name, rule.layout);
    } else if (rule.part[0] != '\0') {
      table.add_part(ours + rule.ours, rule.part, name);
    } else {
      table.add_whole(ours + rule.ours, name, rule.layout);
    }
  }
}

}  // namespace

NamingStyle canonical_style(HfFamily family) {
  const Family layout = family_of(family);
  return {.prefix = layout.prefix, .embedding = layout.embedding};
}

NamingStyle detect_style(HfFamily family, const SafetensorsFolder& folder) {
  NamingStyle style = canonical_style(family);
  const auto& tensors = folder.tensors();
  for (const char* prefix : {"backbone.", "model."}) {
    for (const char* embedding : {"embeddings.weight", "embedding.weight", "embed_tokens.weight"}) {
      if (!tensors.contains(std::string(prefix) + embedding)) continue;
      style.prefix = prefix;
      style.embedding = embedding;
    }
  }
  for (const auto& [name, tensor] : tensors) {
    style.fused_experts |= name.ends_with(".experts.down_proj");
  }
  return style;
}

std::vector<SourceTensor> hf_tensors(HfFamily family, const std::vector<BranchConfig>& branches,
                                     const ParameterStore& store, const NamingStyle& style) {
  const Family layout = family_of(family);
  TableBuilder table(store);
  table.add_whole("embedding.weight", style.prefix + style.embedding, Layout::same);
  for (size_t i = 0; i < branches.size(); ++i) {
    const int slot = int(i) % layout.branches_per_layer;
    const Module* module = nullptr;
    for (const Module& candidate : layout.modules) {
      if (candidate.slot == slot && std::string_view(candidate.kind) == branches[i].kind()) {
        module = &candidate;
      }
    }
    if (module == nullptr) {
      throw UsageError(concat("branch ", i, " (", branches[i].kind(), ") has no place in ",
                              enum_names(HfFamily{})[size_t(family)]));
    }
    const std::string ours = concat("branches.", i, ".");
    const std::string layer =
        concat(style.prefix, "layers.", int(i) / layout.branches_per_layer, ".");
    table.add_whole(ours + "norm.weight", layer + module->norm, Layout::same);
    add_module(table, *module, ours + module->kind + ".", layer + module->name,
               style.fused_experts);
  }
  table.add_whole("final_norm.weight", style.prefix + layout.final_norm, Layout::same);
  if (table.has("head.weight")) table.add_whole("head.weight", kHead, Layout::same);
  return table.finish(family);
}

}  // namespace sluice
