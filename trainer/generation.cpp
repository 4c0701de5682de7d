#include "trainer/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/device_memory.h"
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

namespace {

// The model's memory between tokens, and one token's way through it.
class Generator {
 public:
  Generator(const Model& model, int64_t max_tokens, Stream stream)
      : model_(model),
        device_(model.device()),
        arenas_(count_step(model, 1, max_tokens), {.device = device_, .stream = stream}),
        token_(allocate({1}, DType::i32)),
        logits_(allocate({1, model.config().vocab_size}, DType::f32)),
        on_host_(model.config().vocab_size) {
    for (const StateTensor& spec : model.state_spec(1, max_tokens))
      states_.push_back(allocate(spec.dims, spec.dtype));  // zero: a document's start
  }

  // The logits behind the token.
  const std::vector<float>& step(int32_t token, int64_t position) {
    const Context ctx = arenas_.context();
    copy_bytes(token_.data, device_, &token, kCpu, sizeof(token), ctx.stream);
    model_.step(ctx, token_, position, states_, logits_);
    copy_bytes(on_host_.data(), kCpu, logits_.data, device_, on_host_.size() * sizeof(float),
               ctx.stream);
    ctx.stream.sync();
    return on_host_;
  }

 private:
  TensorView allocate(const Dims& dims, DType dtype) {
    memory_.emplace_back(dims.numel() * size_of(dtype), device_);
    return TensorView(memory_.back().data(), dims, dtype, device_);
  }

  const Model& model_;
  Device device_;
  std::vector<Buffer> memory_;
  StepArenas arenas_;
  TensorView token_, logits_;
  std::vector<TensorView> states_;
  std::vector<float> on_host_;
};

}  // namespace

void generate(const Model& model, const std::vector<int32_t>& prompt,
              const GenerationOptions& options, const std::function<bool(int32_t)>& emit,
              Stream stream) {
  if (prompt.empty()) throw UsageError("a prompt needs at least one token");
  SLUICE_CHECK(model.dtype() == DType::f32, "generation runs in f32");
  const int64_t max_tokens = int64_t(prompt.size()) + options.tokens;
  Generator generator(model, max_tokens, stream);
  std::vector<float> logits;
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
    logits = generator.step(token, position);
  }
}

}  // namespace sluice
