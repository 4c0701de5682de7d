#include "trainer/step_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/grad_norm/grad_norm.h"

namespace sluice {

namespace {

ModelBuild build_of(const Config& config, const LayerGroups& groups = {}) {
  return {.recompute = config.train.recompute, .groups = groups};
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

StepEngine::StepEngine(const Config& config, const Mesh& mesh, DType dtype)
    : config_(config),
      mesh_(mesh),
      shape_(step_shape(config.train, mesh.shape().dp, mesh.at().dp)),
      store_(dtype),
      model_(config.model, store_, build_of(config, layer_groups(mesh))),
      optimizer_((store_.freeze(), config.optimizer), store_) {
  store_.initialise(uint64_t(config.seed));
  accumulation_ = std::make_unique<GradientAccumulation>(
      store_, mesh.axis(Axis::dp), shape_.micro_batches, config.train.global_batch);
  const PlannedModel planned(config.model, build_of(config), dtype, mesh.shape(),
                             mesh.world().rank());
  peaks_ = planned.count_training(config.train.micro_batch, config.train.seq_len);
  arenas_ = std::make_unique<StepArenas>(peaks_);
}

int64_t StepEngine::memory_bytes() const {
  const int64_t flat = store_.flat_size() * int64_t(size_of(store_.dtype()));
  return int64_t(peaks_.saved + peaks_.scratch) + 3 * flat + accumulation_->bytes();
}

StepReport StepEngine::step(const StepInput& input) {
  StepReport report{.lr = input.lr, .statistics = {}};
  accumulate_gradients(input, report);
  measure_gradient(report);
  update(report);
  return report;
}

void StepEngine::accumulate_gradients(const StepInput& input, StepReport& report) {
  const double per_target = 1.0 / double(std::max<int64_t>(1, input.targets));
  const StepSums sums =
      accumulation_->run(arenas_->context(), model_,
                         {.loss_scale = per_target, .routing = input.routing}, input.next_batch);
  report.loss = sums.loss * per_target;
  report.statistics = sums.statistics;
}

// Every rank holds the whole reduced gradient, so all find the same norm and decide alike.
void StepEngine::measure_gradient(StepReport& report) {
  const Context ctx = arenas_->context();
  double squares = 0;
  squared_norm(ctx, {.x = store_.gradients(), .sum = TensorView(&squares, {1})});
  report.grad_norm = std::sqrt(squares);
  report.finite = std::isfinite(report.loss) && std::isfinite(report.grad_norm);
}

void StepEngine::update(StepReport& report) {
  if (!report.finite) return;
  const double clip = config_.optimizer.clip;
  const double grad_scale = clip > 0 && report.grad_norm > clip ? clip / report.grad_norm : 1;
  optimizer_.update(arenas_->context(), report.lr, grad_scale);
  model_.end_step(report.statistics);
}

}  // namespace sluice
