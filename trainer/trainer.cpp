#include "trainer/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/grad_norm/grad_norm.h"
#include "trainer/schedule.h"

namespace sluice {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

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
                                                  .first_step_row = first_step_row});
}

}  // namespace

StepShape step_shape(const TrainConfig& train, int64_t dp, int64_t dp_rank) {
  const int64_t micro_batches_of_world = train.global_batch / train.micro_batch;
  if (train.global_batch % train.micro_batch != 0 || micro_batches_of_world % dp != 0) {
    throw UsageError(fmt::format(
        "train.global_batch {} must be a multiple of train.micro_batch {} times dp {} = {}",
        train.global_batch, train.micro_batch, dp, train.micro_batch * dp));
  }
  StepShape shape{.micro_batches = micro_batches_of_world / dp};
  shape.first_row = dp_rank * shape.micro_batches * train.micro_batch;
  return shape;
}

Trainer::Trainer(const Config& config, Mesh& mesh)
    : config_(config),
      group_(mesh.axis(Axis::dp)),
      shape_(step_shape(config.train, mesh.shape().dp, mesh.at().dp)),
      sampler_(open_sampler(config, 0, 0)),
      store_(DType::f32),
      model_(config.model, store_, {.recompute = config.train.recompute}),
      optimizer_((store_.freeze(), config.optimizer), store_) {
  store_.initialise(uint64_t(config.seed));
  accumulation_ = std::make_unique<GradientAccumulation>(store_, group_, shape_.micro_batches,
                                                         config.train.global_batch);
  peaks_ = count_training(model_, config.train.micro_batch, config.train.seq_len);
  arenas_ = std::make_unique<StepArenas>(peaks_);
  if (!config.data.valid.empty()) held_out_ = std::make_unique<TokenStore>(config.data.valid);
  start_prefetch();
}

void Trainer::set_steps_done(int64_t steps, int64_t rows_done) {
  steps_done_ = steps;
  prefetcher_.reset();
  sampler_ = open_sampler(config_, steps, rows_done);
  start_prefetch();
}

int64_t Trainer::rows_done() const { return sampler_->row_of_step(steps_done_); }

int64_t Trainer::memory_bytes() const {
  const int64_t flat = store_.flat_size() * int64_t(size_of(store_.dtype()));
  return int64_t(peaks_.saved + peaks_.scratch) + 3 * flat + accumulation_->bytes();
}

// This rank's micro-batches of all steps to come, in order.
void Trainer::start_prefetch() {
  prefetcher_ = std::make_unique<Prefetcher>(
      [this, first_step = steps_done_](int64_t n) -> std::optional<Batch> {
        const int64_t step = first_step + n / shape_.micro_batches;
        if (step >= config_.train.steps) return std::nullopt;
        const int64_t row = shape_.first_row + n % shape_.micro_batches * config_.train.micro_batch;
        return sampler_->batch(step, row, config_.train.micro_batch);
      },
      config_.data.prefetch);
}

StepReport Trainer::step() {
  const Clock::time_point start = Clock::now();
  StepReport report;
  report.step = steps_done_ + 1;
  report.lr =
      learning_rate(config_.schedule, config_.optimizer.lr, report.step, config_.train.steps);
  accumulate_gradients(report);
  measure_gradient(report);
  update(report);
  steps_done_ = report.step;
  report.step_s = seconds_since(start);
  return report;
}

void Trainer::accumulate_gradients(StepReport& report) {
  const int64_t targets = sampler_->count_targets(steps_done_);
  const double per_target = 1.0 / double(std::max<int64_t>(1, targets));
  const StepSums sums = accumulation_->run(arenas_->context(), model_, per_target, [&] {
    std::optional<Batch> batch = prefetcher_->next();
    SLUICE_CHECK(batch.has_value(), "the sampler ended before step ", report.step);
    return std::move(*batch);
  });
  report.data_wait_s = prefetcher_->take_wait_seconds();
  report.loss = sums.loss * per_target;
  report.statistics = sums.statistics;
}

// Every rank holds the whole reduced gradient, so all find the same norm and decide alike.
void Trainer::measure_gradient(StepReport& report) {
  const Context ctx = arenas_->context();
  double squares = 0;
  squared_norm(ctx, {.x = store_.gradients(), .sum = TensorView(&squares, {1})});
  report.grad_norm = std::sqrt(squares);
  report.finite = std::isfinite(report.loss) && std::isfinite(report.grad_norm);
}

void Trainer::update(StepReport& report) {
  if (!report.finite) return;
  const double clip = config_.optimizer.clip;
  const double grad_scale = clip > 0 && report.grad_norm > clip ? clip / report.grad_norm : 1;
  optimizer_.update(arenas_->context(), report.lr, grad_scale);
  model_.end_step(report.statistics);
}

EvaluationResult Trainer::evaluate_held_out() {
  SLUICE_CHECK(held_out_ != nullptr, "there is no held-out store");
  return evaluate(arenas_->context(), model_, *held_out_, group_, config_.train.seq_len,
                  config_.train.micro_batch, config_.train.eval_rows);
}

}  // namespace sluice
