#include "trainer/trainer.h"

#include <fmt/format.h>

#include <chrono>

#include "trainer/schedule.h"

namespace sluice {

namespace {

std::unique_ptr<Sampler> open_sampler(const Config& config, int64_t first_step,
                                      int64_t first_step_row) {
  std::vector<SamplerSource> sources;
  for (const DataSource& source : config.data.train) {
    sources.push_back({std::make_unique<TokenStore>(source.path), source.weight});
    const int64_t vocab = sources.back().store->header().vocab_size;
    if (vocab > config.model.vocab_size) {
      throw UsageError(
          fmt::format("{} has a vocabulary of {}, model.vocab_size is {}: set it to {} or more",
                      source.path, vocab, config.model.vocab_size, vocab));
    }
  }
  return std::make_unique<Sampler>(std::move(sources),
                                   SamplerOptions{.seq_len = config.train.seq_len,
                                                  .global_batch = config.train.global_batch,
                                                  .seed = uint64_t(config.seed),
                                                  .first_step = first_step,
                                                  .first_step_row = first_step_row,
                                                  .carry_state = config.data.carry_state});
}

}  // namespace

Trainer::Trainer(const Config& config, const Mesh& mesh, const Place& place)
    : config_(config),
      sampler_(open_sampler(config, 0, 0)),
      engine_(config, mesh, compute_dtype(config.precision), place) {
  if (!config.data.valid.empty()) held_out_ = std::make_unique<TokenStore>(config.data.valid);
  start_prefetch();
}

void Trainer::set_steps_done(int64_t steps, int64_t rows_done) {
  steps_done_ = steps;
  prefetcher_.reset();
  engine_.discard_staged();
  sampler_ = open_sampler(config_, steps, rows_done);
  start_prefetch();
}

int64_t Trainer::rows_done() const { return sampler_->row_of_step(steps_done_); }

// This rank's micro-batches of all steps to come, in order.
void Trainer::start_prefetch() {
  prefetcher_ = std::make_unique<Prefetcher>(
      [this, first_step = steps_done_](int64_t n) -> std::optional<Batch> {
        const int64_t step = first_step + n / engine_.num_micro_batches();
        if (step >= config_.train.steps) return std::nullopt;
        return sampler_->batch(step, engine_.first_row(n % engine_.num_micro_batches()),
                               engine_.micro_batch_rows(), engine_.sequence_shard());
      },
      config_.data.prefetch);
}

StepReport Trainer::step() {
  const auto start = std::chrono::steady_clock::now();
  const int64_t step = steps_done_ + 1;
  const double lr =
      learning_rate(config_.schedule, config_.optimizer.lr, step, config_.train.steps);
  const auto next_batch = [&] {
    std::optional<Batch> batch = prefetcher_->next();
    SLUICE_CHECK(batch.has_value(), "the sampler ended at step ", step);
    return std::move(*batch);
  };
  StepReport report = engine_.step({.lr = lr,
                                    .targets = sampler_->count_targets(steps_done_),
                                    .next_batch = next_batch,
                                    .stage_next = step < config_.train.steps});
  report.step = step;
  report.data_wait_s = prefetcher_->take_wait_seconds();
  steps_done_ = step;
  report.step_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

EvaluationResult Trainer::evaluate_held_out() {
  SLUICE_CHECK(held_out_ != nullptr, "there is no held-out store");
  return evaluate(engine_.context(), engine_.model(), *held_out_, engine_.mesh(),
                  {.seq_len = config_.train.seq_len,
                   .micro_batch = config_.train.micro_batch,
                   .max_rows = config_.train.eval_rows});
}

}  // namespace sluice
