#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/ngram.h"
#include "kernels/core/threads.h"
#include "parallel/self_communicator.h"
#include "trainer/commands/commands.h"
#include "trainer/device_choice.h"
#include "trainer/evaluation.h"
#include "trainer/model_source.h"
#include "trainer/step_memory.h"

namespace sluice {

namespace {

constexpr int64_t kDefaultSeqLen = 1024;

double ngram_bits_per_byte(const std::string& train, TokenStore& held_out) {
  TokenStore store(train);
  ByteNgram ngram;
  ngram.train(store);
  return ngram.score(held_out).bits_per_byte();
}

}  // namespace

int run_eval(const EvalOptions& options) {
  set_num_threads(default_num_threads(1));
  const Precision precision = options.bf16 ? Precision::bf16 : Precision::f32;
  const Device device = choose_device(parse_device(options.device), precision);
  const LoadedModel loaded =
      move_model(load_model(options.model), device, compute_dtype(precision));
  TokenStore store(options.data);
  if (store.header().vocab_size > loaded.config.vocab_size) {
    throw UsageError(fmt::format(
        "{} has a vocabulary of {}, the model one of {}: it was made by another tokenizer",
        options.data, store.header().vocab_size, loaded.config.vocab_size));
  }
  const int64_t trained = loaded.seq_len > 0 ? loaded.seq_len : kDefaultSeqLen;
  const int64_t seq_len = options.seq_len > 0 ? options.seq_len : trained;
  const OwnedStream stream(device);
  const Place place{.device = device, .stream = stream};
  StepArenas arenas(count_evaluation(*loaded.model, options.batch, seq_len), place);
  const std::unique_ptr<Communicator> self = make_self_communicator(place);
  const EvaluationResult result =
      evaluate(arenas.context(), *loaded.model, store, Mesh(*self, {}),
               {.seq_len = seq_len, .micro_batch = options.batch, .max_rows = options.rows});
  nlohmann::json report = {
      {"loss", result.loss}, {"targets", result.targets}, {"seq_len", seq_len}};
  if (result.bits_per_byte > 0) report["bits_per_byte"] = result.bits_per_byte;
  if (!options.ngram.empty())
    report["ngram_bits_per_byte"] = ngram_bits_per_byte(options.ngram, store);
  if (options.json) {
    print(report.dump() + "\n");
    return 0;
  }
  print(fmt::format("loss {:.6f} nats over {} tokens, rows of {}\n", result.loss, result.targets,
                    seq_len));
  if (result.bits_per_byte > 0) print(fmt::format("{:.4f} bits per byte\n", result.bits_per_byte));
  if (!options.ngram.empty()) {
    print(fmt::format("{:.4f} bits per byte of a byte 3-gram model\n",
                      report["ngram_bits_per_byte"].get<double>()));
  }
  return 0;
}

}  // namespace sluice
