#include "trainer/hf/config_keys.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"

namespace sluice {

namespace {

// Keys that say nothing about what the model computes: bookkeeping, token ids, how transformers
// runs it, and how it was initialised.
constexpr std::string_view kNeutral[] = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "calc_logits_for_entire_prompt",
    "dtype",
    "eos_token_id",
    "fused_add_norm",
    "initializer_range",
    "mamba_proj_bias",
    "mamba_ssm_cache_dtype",
    "max_position_embeddings",
    "moe_shared_expert_overlap",
    "n_shared_experts",
    "num_logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "rescale_prenorm_residual",
    "return_dict",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_rank",
    "time_step_scale",
    "torch_dtype",
    "transformers_version",
    "use_associative_scan",
    "use_cache",
    "use_falcon_mambapy",
    "use_mamba_kernels",
    "use_mambapy",
};

std::string text(int64_t value) { return std::to_string(value); }
std::string text(bool value) { return value ? "true" : "false"; }
std::string text(double value) { return Json(value).dump(); }
std::string text(const std::string& value) { return printable(value); }

}  // namespace

template <class T>
T ConfigKeys::absent(const std::string& key, T fallback) {
  note(concat(object_.name(key), " is absent: ", text(fallback), " is taken"));
  return fallback;
}

std::string ConfigKeys::either(const std::string& key, const std::string& alias) const {
  if (!has(alias)) return key;
  if (has(key) && object_.at(key) != object_.at(alias)) {
    throw DataError(concat(object_.name(key), " and ", printable(alias), " differ; remove one"));
  }
  return alias;
}

int64_t ConfigKeys::size(const std::string& key, int64_t max) const {
  return object_.integer(key, 1, max);
}

int64_t ConfigKeys::size_or(const std::string& key, int64_t fallback, int64_t max) {
  return has(key) ? size(key, max) : absent(key, fallback);
}

int64_t ConfigKeys::index_or(const std::string& key, int64_t fallback) {
  return has(key) ? object_.integer(key, 0, kMaxSize) : absent(key, fallback);
}

double ConfigKeys::number_or(const std::string& key, double fallback) {
  if (!has(key)) return absent(key, fallback);
  const double value = object_.number(key);
  if (!(value >= 0) || std::isinf(value)) {
    throw DataError(concat(object_.name(key), " must be a finite number >= 0, got ", value));
  }
  return value;
}

bool ConfigKeys::flag_or(const std::string& key, bool fallback) {
  return has(key) ? object_.boolean(key) : absent(key, fallback);
}

std::string ConfigKeys::word_or(const std::string& key, const std::string& fallback) {
  return has(key) ? object_.string(key) : absent(key, fallback);
}

int64_t ConfigKeys::product(const std::string& what, int64_t a, int64_t b) const {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || result > kMaxInner) {
    throw DataError(
        concat(object_.where(), ": ", what, " = ", a, " * ", b, " is above ", kMaxInner));
  }
  return result;
}

void ConfigKeys::refuse(const std::string& key, const std::string& reason) const {
  const Json& value = object_.at(key);
  std::string shown = value.is_structured() ? "" : " is " + printable(value.dump());
  throw DataError(concat(object_.name(key), shown, ": ", reason));
}

void ConfigKeys::expect_absent(const std::string& key, const std::string& reason) const {
  if (has(key)) refuse(key, reason);
}

void ConfigKeys::expect_word(const std::string& key, const std::string& word,
                             const std::string& fallback) {
  if (word_or(key, fallback) != word) refuse(key, "only " + printable(word) + " is computed here");
}

void ConfigKeys::expect_flag(const std::string& key, bool value, bool fallback,
                             const std::string& reason) {
  if (flag_or(key, fallback) != value) refuse(key, reason);
}

std::vector<std::string> ConfigKeys::take_notes() {
  std::string unused;
  for (const std::string& key : object_.unread()) {
    const bool neutral =
        std::find(std::begin(kNeutral), std::end(kNeutral), key) != std::end(kNeutral);
    if (!neutral) unused += (unused.empty() ? "" : ", ") + printable(key);
  }
  if (!unused.empty()) note(concat(object_.where(), ": keys that were not used: ", unused));
  return std::move(notes_);
}

}  // namespace sluice
