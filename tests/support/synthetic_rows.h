// Packed rows for an engine, as a function of (step, row): documents of one token and more, that
// end anywhere.
#pragma once

#include "trainer/step_engine.h"

namespace sluice::test {

inline Batch::Row synthetic_row(const Config& config, int64_t step, int64_t row) {
  const RngKey key{.seed = uint64_t(step), .stream = uint64_t(row)};
  const auto token = [&](int64_t t) {
    return int32_t(random_below(key, uint64_t(t), uint64_t(config.model.vocab_size)));
  };
  const auto starts = [&](int64_t t) { return random_below(key, uint64_t(100'000 + t), 5) == 0; };
  Batch::Row made;
  int32_t begin = 0;
  for (int64_t t = 0; t < config.train.seq_len; ++t) {
    if (t > 0 && starts(t)) begin = int32_t(t);
    made.tokens.push_back(token(t));
    made.doc_begin.push_back(begin);
    made.targets.push_back(starts(t + 1) ? -1 : token(t + 1));
  }
  return made;
}

// Target tokens of the whole step.
inline int64_t count_synthetic_targets(const Config& config, int64_t step) {
  int64_t count = 0;
  for (int64_t row = 0; row < config.train.global_batch; ++row) {
    for (const int32_t target : synthetic_row(config, step, row).targets) count += target >= 0;
  }
  return count;
}

// One step of the engine on them. `routing` records or dictates the experts' choices.
inline StepReport synthetic_step(StepEngine& engine, const Config& config, int64_t step,
                                 double lr = 1e-2, RoutingTape* routing = nullptr) {
  int64_t i = 0;
  const auto next = [&] {
    const int64_t first = engine.first_row(i++);
    Batch batch(first, engine.micro_batch_rows(), config.train.seq_len, engine.sequence_shard(),
                config.train.global_batch);
    for (int64_t b = 0; b < engine.micro_batch_rows(); ++b)
      batch.set_row(b, synthetic_row(config, step, first + b));
    return batch;
  };
  return engine.step({.lr = lr,
                      .targets = count_synthetic_targets(config, step),
                      .next_batch = next,
                      .routing = routing});
}

}  // namespace sluice::test
