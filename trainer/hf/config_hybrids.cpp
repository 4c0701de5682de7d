// Jamba, Bamba and Nemotron-H: stacks of several kinds of layers.
#include <algorithm>
#include <map>

#include "kernels/core/error.h"
#include "trainer/hf/config_families.h"

namespace sluice {

namespace {

AttentionConfig read_attention(ConfigKeys& keys, int64_t d_model) {
  AttentionConfig attention;
  attention.heads = keys.size("num_attention_heads");
  attention.kv_heads = keys.size_or("num_key_value_heads", attention.heads);
  attention.head_dim = keys.has("head_dim") ? keys.size("head_dim") : d_model / attention.heads;
  if (!keys.has("head_dim") && d_model % attention.heads != 0) {
    keys.refuse("num_attention_heads", concat("does not divide hidden_size ", d_model));
  }
  keys.product("num_attention_heads * head_dim", attention.heads, attention.head_dim);
  keys.product("num_key_value_heads * head_dim", attention.kv_heads, attention.head_dim);
  keys.expect_absent("sliding_window", "transformers versions differ in what they make of it");
  return attention;
}

void note_pad_row(ConfigKeys& keys) {
  if (!keys.has("pad_token_id")) return;
  keys.note(concat(keys.object().name("pad_token_id"),
                   ": transformers gives this row of the embedding no gradient, sluice does"));
}

// Attention layers are those with index % period == offset, experts likewise.
struct Placement {
  int64_t period = 1;
  int64_t offset = 0;
  bool holds(int64_t layer) const { return layer % period == offset; }
};

Placement read_placement(ConfigKeys& keys, const std::string& name, const Placement& fallback) {
  const Placement placement{.period = keys.size_or(name + "_period", fallback.period),
                            .offset = keys.index_or(name + "_offset", fallback.offset)};
  if (placement.offset >= placement.period) {
    keys.refuse(name + "_offset", concat("must be below the period ", placement.period));
  }
  return placement;
}

}  // namespace

void map_jamba(ConfigKeys& keys, HfConfig& result) {
  ModelConfig& model = result.model;
  model.tie_embeddings = keys.flag_or("tie_word_embeddings", false);
  model.norm_eps = keys.number_or("rms_norm_eps", 1e-6);
  model.residual = ResidualDType::model;
  keys.expect_word("hidden_act", "silu", "silu");

  MambaConfig mamba;
  mamba.state_dim = keys.size_or("mamba_d_state", 16);
  mamba.conv_width = keys.size_or("mamba_d_conv", 4);
  mamba.expand = keys.size_or("mamba_expand", 2);
  mamba.inner = keys.product("the inner width", mamba.expand, model.d_model);
  mamba.dt_rank = read_dt_rank(keys, "mamba_dt_rank", model.d_model);
  mamba.conv_bias = keys.flag_or("mamba_conv_bias", true);
  mamba.proj_bias = keys.flag_or("mamba_proj_bias", false);
  mamba.inner_norm = InnerNorm::learned;
  mamba.inner_norm_eps = model.norm_eps;

  AttentionConfig attention = read_attention(keys, model.d_model);
  attention.rope.fraction = 0;
  const MlpConfig mlp{.hidden = keys.size("intermediate_size"), .activation = Activation::swiglu};
  MoeConfig moe;
  moe.experts =
      keys.size_or(keys.either("num_experts", "num_local_experts"), 16, ConfigKeys::kMaxExperts);
  moe.top_k = keys.size_or("num_experts_per_tok", 2);
  moe.hidden = mlp.hidden;
  moe.aux_loss = 0;
  moe.z_loss = 0;
  if (keys.has("router_aux_loss_coef")) {
    keys.note(concat(keys.object().name("router_aux_loss_coef"),
                     " is a setting of training: auxiliary losses are 0 until you set them"));
  }
  note_pad_row(keys);

  const Placement attends = read_placement(keys, "attn_layer", {.period = 8, .offset = 4});
  const Placement experts = read_placement(keys, "expert_layer", {.period = 2, .offset = 1});
  const int64_t layers = layers_of(keys);
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (attends.holds(layer)) {
      add_branch(result, attention);
    } else {
      add_branch(result, mamba);
    }
    if (experts.holds(layer) && moe.experts > 1) {  // a single expert is a plain MLP there
      add_branch(result, moe);
    } else {
      add_branch(result, mlp);
    }
  }
}

namespace {

// v5 has rope_parameters, v4 rope_theta and rope_scaling.
double read_rope_theta(ConfigKeys& keys) {
  constexpr double kTheta = 10000;
  keys.expect_absent("rope_scaling", "scaled rotary positions are not computed here");
  if (!keys.has("rope_parameters")) return keys.number_or("rope_theta", kTheta);
  const JsonObject rope(keys.object().at("rope_parameters"), keys.object().name("rope_parameters"));
  if (rope.has("rope_type") && rope.string("rope_type") != "default") {
    throw DataError(concat(rope.name("rope_type"), " is ", printable(rope.string("rope_type")),
                           ": only 'default' is computed here"));
  }
  if (rope.has("partial_rotary_factor") && rope.number("partial_rotary_factor") != 0.5) {
    throw DataError(concat(rope.name("partial_rotary_factor"), ": transformers fixes 0.5 here"));
  }
  const double theta = rope.has("rope_theta") ? rope.number("rope_theta") : kTheta;
  if (!rope.unread().empty()) {
    throw DataError(concat(rope.name(rope.unread().front()), " is not known here"));
  }
  return theta;
}

}  // namespace

void map_bamba(ConfigKeys& keys, HfConfig& result) {
  ModelConfig& model = result.model;
  model.tie_embeddings = keys.flag_or("tie_word_embeddings", false);
  model.norm_eps = keys.number_or("rms_norm_eps", 1e-5);
  model.residual = ResidualDType::model;
  keys.expect_word("hidden_act", "silu", "silu");

  Mamba2Config mamba2;
  mamba2.heads = keys.size("mamba_n_heads");
  mamba2.expand = keys.size_or("mamba_expand", 2);
  const int64_t inner = keys.product("the inner width", mamba2.expand, model.d_model);
  const bool automatic = !keys.has("mamba_d_head") || keys.object().at("mamba_d_head") == "auto";
  mamba2.head_dim = automatic ? inner / mamba2.heads : keys.size("mamba_d_head");
  if (mamba2.head_dim < 1 ||
      keys.product("heads * head_dim", mamba2.heads, mamba2.head_dim) != inner) {
    keys.refuse("mamba_n_heads", "heads times head dim must equal mamba_expand * hidden_size");
  }
  mamba2.groups = keys.size_or("mamba_n_groups", 1);
  if (mamba2.groups != 1) keys.refuse("mamba_n_groups", kWholeNorm);
  mamba2.state_dim = keys.size_or("mamba_d_state", 256);
  mamba2.conv_width = keys.size_or("mamba_d_conv", 4);
  mamba2.chunk = keys.size_or("mamba_chunk_size", 256);
  mamba2.conv_bias = keys.flag_or("mamba_conv_bias", true);
  mamba2.proj_bias = keys.flag_or("mamba_proj_bias", false);
  read_step_limit(keys, "time_step_limit", mamba2);
  read_step_init(keys, mamba2);
  check_products(keys, mamba2);

  AttentionConfig attention = read_attention(keys, model.d_model);
  attention.bias = keys.flag_or("attention_bias", false);
  attention.rope.theta = read_rope_theta(keys);
  attention.rope.fraction = 0.5;
  if (keys.has("partial_rotary_factor") && keys.object().number("partial_rotary_factor") != 0.5) {
    keys.refuse("partial_rotary_factor", "transformers fixes 0.5 here");
  }
  const MlpConfig mlp{.hidden = keys.size("intermediate_size"),
                      .activation = Activation::swiglu,
                      .bias = keys.flag_or("mlp_bias", false)};
  if (keys.number_or("z_loss_coefficient", 0) != 0) {
    keys.note(
        concat(keys.object().name("z_loss_coefficient"), " is a setting of training: unused"));
  }
  note_pad_row(keys);

  const int64_t layers = layers_of(keys);
  std::vector<bool> attends(layers, false);
  if (keys.has("attn_layer_indices")) {
    for (const Json& index : keys.object().array("attn_layer_indices")) {
      attends[json_integer(index, keys.object().name("attn_layer_indices"), 0, layers - 1)] = true;
    }
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (attends[layer]) {
      add_branch(result, attention);
    } else {
      add_branch(result, mamba2);
    }
    add_branch(result, mlp);
  }
}

namespace {

// The letters of a Nemotron-H stack, from a pattern or from a list of kinds under old or new names.
std::string read_letters(ConfigKeys& keys) {
  const std::string list = keys.either("layers_block_type", "layer_types");
  std::string letters;
  if (keys.has(list)) {
    for (const Json& item : keys.object().array(list)) {
      const std::string kind = json_string(item, keys.object().name(list));
      const char letter = kind == "mamba" || kind == "linear_attention"     ? 'M'
                          : kind == "attention" || kind == "full_attention" ? '*'
                          : kind == "mlp"                                   ? '-'
                          : kind == "moe"                                   ? 'E'
                                                                            : '?';
      if (letter == '?') {
        keys.refuse(list,
                    concat("knows mamba (or linear_attention), attention (or full_attention), "
                           "mlp and moe, got ",
                           printable(kind)));
      }
      letters += letter;
    }
  }
  const std::string pattern = "hybrid_override_pattern";
  if (keys.has(pattern)) {
    const std::string& given = keys.object().string(pattern);
    const size_t bad = given.find_first_not_of("M*-E");
    if (bad != std::string::npos) {
      keys.refuse(pattern, concat("the letters are M, *, - and E, got ",
                                  printable(given.substr(bad, 1)), " at place ", bad));
    }
    if (!letters.empty() && letters != given)
      keys.refuse(pattern, concat("differs from ", printable(list)));
    letters = given;
  }
  if (letters.empty() || int64_t(letters.size()) > ConfigKeys::kMaxLayers) {
    throw DataError(concat(keys.object().where(),
                           ": 'hybrid_override_pattern' or 'layers_block_type' must list 1 to ",
                           ConfigKeys::kMaxLayers, " layers"));
  }
  if (keys.has("num_hidden_layers") && layers_of(keys) != int64_t(letters.size())) {
    keys.refuse("num_hidden_layers", concat("the stack lists ", letters.size(), " layers"));
  }
  return letters;
}

Mamba2Config read_nemotron_mamba2(ConfigKeys& keys) {
  Mamba2Config mamba2;
  mamba2.heads = keys.size("mamba_num_heads");
  mamba2.head_dim = keys.size("mamba_head_dim");
  mamba2.state_dim = keys.size("ssm_state_size");
  mamba2.groups = keys.size(keys.either("n_groups", "mamba_n_groups"));
  mamba2.conv_width = keys.size_or(keys.either("conv_kernel", "mamba_d_conv"), 4);
  mamba2.chunk = keys.size_or(keys.either("chunk_size", "mamba_chunk_size"), 128);
  mamba2.conv_bias = keys.flag_or(keys.either("use_conv_bias", "mamba_conv_bias"), true);
  mamba2.proj_bias = keys.flag_or("use_bias", false);  // not mamba_proj_bias, which nothing reads
  keys.expect_word("mamba_hidden_act", "silu", "silu");
  read_step_limit(keys, keys.either("time_step_limit", "mamba_dt_limit"), mamba2);
  read_step_init(keys, mamba2);
  // There the smallest step clamps, beside initialising.
  const double smallest = keys.number_or(keys.either("time_step_min", "mamba_dt_min"), 1e-3);
  mamba2.dt_min = std::max(mamba2.dt_min, smallest);
  if (mamba2.dt_min > mamba2.dt_max)
    keys.refuse("time_step_limit", "its end is below time_step_min");
  check_products(keys, mamba2);
  return mamba2;
}

Activation read_mlp_activation(ConfigKeys& keys) {
  const std::string name = keys.word_or("mlp_hidden_act", "relu2");
  if (name == "relu2") return Activation::relu2;
  if (name == "gelu") return Activation::gelu;
  keys.refuse("mlp_hidden_act", "only 'relu2' and 'gelu' are computed here");
}

MoeConfig read_nemotron_moe(ConfigKeys& keys) {
  keys.expect_absent("moe_latent_size", "experts on a latent width are not computed here");
  keys.expect_flag("mlp_bias", false, false, "experts have no biases here");
  MoeConfig moe;
  moe.experts =
      keys.size(keys.either("n_routed_experts", "num_local_experts"), ConfigKeys::kMaxExperts);
  moe.top_k = keys.size("num_experts_per_tok");
  moe.hidden = keys.size("moe_intermediate_size");
  moe.activation = read_mlp_activation(keys);
  moe.score = RouterScore::sigmoid;
  moe.renormalise = keys.flag_or("norm_topk_prob", true);
  moe.scale = keys.number_or("routed_scaling_factor", 1.0);
  moe.groups = keys.size_or("n_group", 1);
  moe.topk_group = keys.size_or("topk_group", 1);
  // There is one shared expert of this width, whatever n_shared_experts says.
  moe.shared_hidden = keys.size("moe_shared_expert_intermediate_size");
  moe.aux_loss = 0;
  moe.z_loss = 0;
  return moe;
}

BranchConfig read_nemotron_branch(ConfigKeys& keys, char letter, int64_t d_model) {
  if (letter == 'M') return {.config = read_nemotron_mamba2(keys)};
  if (letter == 'E') return {.config = read_nemotron_moe(keys)};
  if (letter == '*') {
    AttentionConfig attention = read_attention(keys, d_model);
    attention.bias = keys.flag_or("attention_bias", false);
    attention.rope.fraction = 0;
    return {.config = attention};
  }
  return {.config = MlpConfig{.hidden = keys.size("intermediate_size"),
                              .activation = read_mlp_activation(keys),
                              .bias = keys.flag_or("mlp_bias", false)}};
}

}  // namespace

void map_nemotron_h(ConfigKeys& keys, HfConfig& result) {
  ModelConfig& model = result.model;
  model.tie_embeddings = keys.flag_or("tie_word_embeddings", false);
  model.norm_eps = keys.number_or("layer_norm_epsilon", 1e-5);
  model.residual =
      keys.flag_or("residual_in_fp32", false) ? ResidualDType::f32 : ResidualDType::model;
  // Each kind is read once, so that its notes are made once.
  std::map<char, BranchConfig> kinds;
  for (const char letter : read_letters(keys)) {
    if (!kinds.contains(letter)) kinds[letter] = read_nemotron_branch(keys, letter, model.d_model);
    model.stack.branches.push_back(kinds[letter]);
  }
}

}  // namespace sluice
