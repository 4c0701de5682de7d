#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "kernels/core/threads.h"
#include "trainer/commands/commands.h"
#include "trainer/device_choice.h"
#include "trainer/generation.h"
#include "trainer/model_source.h"

namespace sluice {

int run_generate(const GenerateOptions& options) {
  set_num_threads(default_num_threads(1));
  const Device device = choose_device(parse_device(options.device), Precision::f32);
  const LoadedModel loaded = move_model(load_model(options.model), device, DType::f32);
  const OwnedStream stream(device);
  const ByteTokenizer tokenizer;  // the one there is
  if (loaded.config.vocab_size < tokenizer.vocab_size()) {
    throw UsageError(fmt::format(
        "{} has {} ids, fewer than the byte tokenizer's {}: its tokenizer is another one",
        options.model, loaded.config.vocab_size, tokenizer.vocab_size()));
  }
  std::vector<int32_t> prompt;
  tokenizer.encode(options.prompt, prompt);
  if (prompt.empty()) throw UsageError("--prompt is empty: give at least one character");
  std::vector<int32_t> sampled;
  const GenerationOptions generation{.tokens = options.tokens,
                                     .temperature = options.temperature,
                                     .top_k = options.top_k,
                                     .seed = uint64_t(options.seed),
                                     .vocab_size = tokenizer.vocab_size(),
                                     .stop_token = tokenizer.end_of_document()};
  if (!options.json) print(options.prompt);
  const auto emit = [&](int32_t token) {
    if (token == tokenizer.end_of_document()) return false;
    sampled.push_back(token);
    if (!options.json) print(tokenizer.decode({&token, 1}));
    return true;
  };
  generate(*loaded.model, prompt, generation, emit, stream);
  const std::string text = tokenizer.decode(sampled);
  const auto replace = nlohmann::json::error_handler_t::replace;  // bytes need not be UTF-8
  const nlohmann::json report = {{"prompt", options.prompt}, {"text", text}, {"tokens", sampled}};
  print(options.json ? report.dump(-1, ' ', false, replace) + "\n" : "\n");
  return 0;
}

}  // namespace sluice
