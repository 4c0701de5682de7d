#include "trainer/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/step_memory.h"

namespace sluice {

int32_t sample_token(const std::vector<float>& logits, const GenerationOptions& options,
                     int64_t n) {
  const int64_t V = options.vocab_size > 0
                        ? std::min<int64_t>(options.vocab_size, int64_t(logits.size()))
                        : int64_t(logits.size());
  std::vector<int32_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (options.temperature <= 0) return order[0];
  if (options.top_k > 0 && options.top_k < V) order.resize(options.top_k);
  std::vector<double> cumulative(order.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    total += std::exp((double(logits[order[i]]) - logits[order[0]]) / options.temperature);
    cumulative[i] = total;
  }
  const RngKey key{.seed = options.seed, .stream = hash_name("generate")};
  const double threshold = random_uniform(key, uint64_t(n)) * total;
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end() - 1, threshold);
  return order[chosen - cumulative.begin()];
}

void generate(const Model& model, const std::vector<int32_t>& prompt,
              const GenerationOptions& options, const std::function<bool(int32_t)>& emit) {
  if (prompt.empty()) throw UsageError("a prompt needs at least one token");
  SLUICE_CHECK(model.dtype() == DType::f32, "generation runs in f32");
  const int64_t V = model.config().vocab_size;
  const int64_t max_tokens = int64_t(prompt.size()) + options.tokens;
  std::vector<Buffer> memory;
  std::vector<TensorView> states;
  for (const StateTensor& spec : model.state_spec(1, max_tokens)) {
    memory.emplace_back(spec.dims.numel() * size_of(spec.dtype), kCpu);  // zero: a document's start
    states.emplace_back(memory.back().data(), spec.dims, spec.dtype);
  }
  StepArenas arenas(count_step(model, 1, max_tokens));
  std::vector<float> logits(V);
  const TensorView logits_view(logits.data(), {1, V});
  for (int64_t position = 0; position < max_tokens; ++position) {
    const int64_t sampled = position - int64_t(prompt.size());
    int32_t token;
    if (sampled < 0) {
      token = prompt[position];
    } else {
      token = sample_token(logits, options, sampled);
      if (!emit(token) || token == options.stop_token) return;
    }
    if (position + 1 == max_tokens) return;
    model.step(arenas.context(), ConstTensorView(&token, {1}), position, states, logits_view);
  }
}

}  // namespace sluice
