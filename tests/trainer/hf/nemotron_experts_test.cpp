// Nemotron-H's mixture of experts, of which there is no fixture, against the plain formulas over
// the file's own tensors (NVIDIA, "Nemotron-H", 2025; routing as in DeepSeek-V3, 2024): a stack of
// one MoE layer, each token on its own. V vocabulary, D width, F hidden width, X experts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "data/hdf5_file.h"
#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/support/fixtures.h"
#include "tests/support/tolerance.h"
#include "trainer/hf/hf_model.h"
#include "trainer/hf/safetensors.h"
#include "trainer/score.h"

namespace sluice {
namespace {

using test::fixture_config;
using test::TempFolder;
using Vector = std::vector<double>;

constexpr int64_t V = 96, D = 64, F = 24, X = 6, kShared = 40, kGroups = 3, kTopGroups = 2,
                  kTopK = 3;
constexpr double kScale = 2.5;

Vector matvec(const Vector& weight, const Vector& x) {
  Vector y(weight.size() / x.size(), 0);
  for (size_t row = 0; row < y.size(); ++row) {
    for (size_t i = 0; i < x.size(); ++i) y[row] += weight[row * x.size() + i] * x[i];
  }
  return y;
}

Vector rms_norm(const Vector& x, const Vector& weight) {
  double square = 0;
  for (const double value : x) square += value * value;
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = x[i] * weight[i] / std::sqrt(square / double(x.size()) + 1e-5);
  }
  return y;
}

Vector mlp(const Vector& up, const Vector& down, const Vector& x) {
  Vector hidden = matvec(up, x);
  for (double& value : hidden) value = value > 0 ? value * value : 0;
  return matvec(down, hidden);
}

// Indices of the `count` largest, the lower index first among equals.
std::vector<int64_t> largest(const Vector& values, int64_t count) {
  std::vector<int64_t> order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int64_t(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return values[a] > values[b]; });
  order.resize(count);
  return order;
}

struct Reference {
  std::map<std::string, Vector> weights;

  const Vector& layer(const std::string& name) const {
    return weights.at("backbone.layers.0." + name);
  }

  Vector experts(const Vector& x) const {
    Vector score = matvec(layer("mixer.gate.weight"), x);
    Vector choice(X);
    for (int64_t e = 0; e < X; ++e) {
      score[e] = 1 / (1 + std::exp(-score[e]));
      choice[e] = score[e] + layer("mixer.gate.e_score_correction_bias")[e];
    }
    Vector group(kGroups);
    for (int64_t g = 0; g < kGroups; ++g) {  // of two experts: their two largest are both
      group[g] = choice[2 * g] + choice[2 * g + 1];
    }
    Vector allowed(X, -INFINITY);
    for (const int64_t g : largest(group, kTopGroups)) {
      for (const int64_t e : {2 * g, 2 * g + 1}) allowed[e] = choice[e];
    }
    const std::vector<int64_t> chosen = largest(allowed, kTopK);
    double sum = 1e-20;
    for (const int64_t e : chosen) sum += score[e];
    Vector y = mlp(layer("mixer.shared_experts.up_proj.weight"),
                   layer("mixer.shared_experts.down_proj.weight"), x);
    for (const int64_t e : chosen) {
      const std::string name = "mixer.experts." + std::to_string(e);
      const Vector out = mlp(layer(name + ".up_proj.weight"), layer(name + ".down_proj.weight"), x);
      for (int64_t i = 0; i < D; ++i) y[i] += score[e] / sum * kScale * out[i];
    }
    return y;
  }

  Vector logits(int32_t token) const {
    const Vector& table = weights.at("backbone.embeddings.weight");
    Vector x(table.begin() + token * D, table.begin() + (token + 1) * D);
    const Vector y = experts(rms_norm(x, layer("norm.weight")));
    for (int64_t i = 0; i < D; ++i) x[i] += y[i];
    return matvec(weights.at("lm_head.weight"), rms_norm(x, weights.at("backbone.norm_f.weight")));
  }
};

// Writes a folder of random weights under the names of files on the hub, and keeps the weights.
Reference write_model(const TempFolder& folder) {
  folder.write("config.json",
               fixture_config("nemotron_h", {{"layers_block_type", {"moe"}},
                                             {"n_routed_experts", X},
                                             {"num_experts_per_tok", kTopK},
                                             {"n_group", kGroups},
                                             {"topk_group", kTopGroups},
                                             {"routed_scaling_factor", kScale},
                                             {"moe_intermediate_size", F},
                                             {"moe_shared_expert_intermediate_size", kShared}})
                   .dump());
  Reference reference;
  std::vector<SafetensorsTensor> files;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape, double mean,
                       double spread) {
    Vector& values = reference.weights[name];
    values.resize(shape.size() == 2 ? shape[0] * shape[1] : shape[0]);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = mean + spread * random_normal({.seed = 5, .stream = hash_name(name)}, i);
    }
    files.push_back({name,
                     SafetensorsType::F64,
                     shape,
                     {reinterpret_cast<const char*>(values.data()), values.size() * 8}});
  };
  const std::string mixer = "backbone.layers.0.mixer.";
  add("backbone.embeddings.weight", {V, D}, 0, 1);
  add("backbone.layers.0.norm.weight", {D}, 1, 0.1);
  add(mixer + "gate.weight", {X, D}, 0, 0.2);
  add(mixer + "gate.e_score_correction_bias", {X}, 0, 0.3);
  for (int64_t e = 0; e < X; ++e) {
    add(mixer + "experts." + std::to_string(e) + ".up_proj.weight", {F, D}, 0, 0.1);
    add(mixer + "experts." + std::to_string(e) + ".down_proj.weight", {D, F}, 0, 0.1);
  }
  add(mixer + "shared_experts.up_proj.weight", {kShared, D}, 0, 0.1);
  add(mixer + "shared_experts.down_proj.weight", {D, kShared}, 0, 0.1);
  add("backbone.norm_f.weight", {D}, 1, 0.1);
  add("lm_head.weight", {V, D}, 0, 0.1);
  write_safetensors(folder / "model.safetensors", files);
  return reference;
}

TEST(NemotronExperts, EqualThePlainFormulasInDouble) {
  const TempFolder folder;
  const Reference reference = write_model(folder);
  const LoadedModel loaded = load_model(folder.path(), DType::f64);
  TokenRows rows(1);
  for (int32_t token = 0; token < V; ++token) rows[0].push_back(token);
  const Scores scores = score(loaded, rows, {.logits = true, .gradients = false});
  for (int32_t token = 0; token < V; ++token) {
    const Vector expected = reference.logits(token);
    const double* const got = scores.logits.as<double>() + token * V;
    double difference = 0;
    double norm = 0;
    for (int64_t v = 0; v < V; ++v) {
      difference += (got[v] - expected[v]) * (got[v] - expected[v]);
      norm += expected[v] * expected[v];
    }
    EXPECT_LE(std::sqrt(difference / norm), test::tolerance(DType::f64, D)) << "token " << token;
  }
}

TEST(NemotronExperts, TheChoiceBiasHasNoGradientToDump) {
  const TempFolder folder;
  write_model(folder);
  const LoadedModel loaded = load_model(folder.path(), DType::f64);
  const Scores scores = score(loaded, {{1, 2, 3}}, {.logits = false, .gradients = true});
  write_gradients(folder / "G.h5", loaded, scores);
  const Hdf5Reader file(folder / "G.h5");
  EXPECT_FALSE(file.has("backbone.layers.0.mixer.gate.e_score_correction_bias"));
  EXPECT_TRUE(file.has("backbone.layers.0.mixer.gate.weight"));
  EXPECT_EQ(file.datasets().size(), loaded.tensors.size() - 1);
}

}  // namespace
}  // namespace sluice
