#include "trainer/step_engine.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise/elementwise.h"

namespace sluice {

StepEngine::StepEngine(const Config& config, const Mesh& mesh, DType dtype)
    : config_(config),
      mesh_(mesh),
      micro_batches_(deal_micro_batches(config.train, config.parallel.zero, mesh.shape().dp)),
      store_(dtype),
      model_(config.model, store_,
             {.recompute = config.train.recompute,
              .groups = layer_groups(mesh),
              .carry_state = config.data.carry_state}),
      arena_((store_.freeze(!mesh.planned(), ShardedArena::units(mesh)), store_), mesh,
             config.parallel.zero),
      optimizer_(config.optimizer, store_, arena_.held(), !mesh.planned()),
      accumulation_(store_, arena_, mesh, micro_batches_, !mesh.planned()),
      norm_(arena_, mesh),
      carried_(config.data.carry_state
                   ? std::make_unique<CarriedStates>(model_, micro_batches_.count,
                                                     micro_batches_.rows, !mesh.planned())
                   : nullptr),
      arenas_(make_arenas()) {
  if (!mesh.planned()) store_.initialise(uint64_t(config.seed));
}

// As large as a step with one micro-batch, or an evaluation, says.
StepArenas StepEngine::make_arenas() const {
  if (mesh_.planned()) return StepArenas();
  Config config = config_;
  config.train.global_batch = config.train.micro_batch * mesh_.shape().dp;
  const Mesh mesh(mesh_.shape(), mesh_.world().rank());
  StepEngine counting(config, mesh, store_.dtype());
  counting.count_step();
  counting.count_evaluation();
  return StepArenas(counting.arenas_.peaks());
}

EngineMemory StepEngine::memory() const {
  const ArenaPeaks arenas = mesh_.planned() ? arenas_.peaks() : arenas_.capacities();
  return {.values = store_.flat_size() * int64_t(size_of(store_.dtype())),
          .gradients = accumulation_.bytes(),
          .optimizer = optimizer_.bytes(),
          .saved = int64_t(arenas.saved),
          .scratch = int64_t(arenas.scratch),
          .carried = carried_ ? carried_->bytes() : 0};
}

StepReport StepEngine::step(const StepInput& input) {
  StepReport report{.lr = input.lr, .statistics = {}};
  accumulate_gradients(input, report);
  measure_gradient(report);
  update(report);
  return report;
}

void StepEngine::count_step() {
  SLUICE_CHECK(mesh_.planned(), "a step is counted on a planned mesh");
  step({.targets = 1, .next_batch = [&] {
          return Batch::planned(micro_batches_.rows, config_.train.seq_len, sequence_shard(),
                                config_.train.global_batch);
        }});
}

void StepEngine::count_evaluation() {
  SLUICE_CHECK(mesh_.planned(), "an evaluation is counted on a planned mesh");
  const Batch batch = Batch::planned(micro_batches_.rows, config_.train.seq_len, sequence_shard(),
                                     config_.train.global_batch);
  model_.evaluate(arenas_.context(),
                  {.tokens = batch.tokens(), .targets = batch.targets(), .rows = batch.rows()});
}

void StepEngine::accumulate_gradients(const StepInput& input, StepReport& report) {
  const double per_target = 1.0 / double(std::max<int64_t>(1, input.targets));
  const StepSums sums = accumulation_.run(arenas_.context(), model_,
                                          {.loss_scale = per_target,
                                           .routing = input.routing,
                                           .next_batch = input.next_batch,
                                           .carried = carried_.get()});
  report.loss = sums.loss * per_target;
  report.statistics = sums.statistics;
}

void StepEngine::measure_gradient(StepReport& report) {
  report.grad_norm = std::sqrt(norm_.squared(arenas_.context(), accumulation_.gradients()));
  report.finite = std::isfinite(report.loss) && std::isfinite(report.grad_norm);
}

// All ranks have found the same loss and norm, so they decide alike.
void StepEngine::update(StepReport& report) {
  if (carried_) carried_->end_step(report.finite);
  if (!report.finite) return;
  const double clip = config_.optimizer.clip;
  const double grad_scale = clip > 0 && report.grad_norm > clip ? clip / report.grad_norm : 1;
  optimizer_.begin_update();
  update_shards(
      {.lr = report.lr, .grad_scale = grad_scale, .gradients = accumulation_.gradients()});
  model_.end_step(report.statistics);
}

// A bucket's values are on their way while the next bucket is updated.
void StepEngine::update_shards(const Optimizer::Update& update) {
  const Context ctx = arenas_.context();
  if (!arena_.shards_state()) return optimizer_.update(ctx, update, {0, store_.flat_size()});
  std::vector<Event> in_flight;
  for (const GradientReducer& reducer : accumulation_.reducers()) {
    for (size_t bucket = 0; bucket < reducer.buckets().size(); ++bucket) {
      optimizer_.update(ctx, update, reducer.shards()[bucket]);
      in_flight.push_back(reducer.gather(bucket, store_.values()));
    }
  }
  for (const Event& event : in_flight) event.wait();
}

void StepEngine::gather_gradients(const TensorView& flat) {
  expect("gradients", flat, {store_.flat_size()}, stat_dtype(store_.dtype()), kCpu);
  const HeldTensor gradients = accumulation_.gradients();
  for (const GradientReducer& reducer : accumulation_.reducers()) {
    for (size_t bucket = 0; bucket < reducer.buckets().size(); ++bucket) {
      const Slice& own = reducer.shards()[bucket];
      copy(arenas_.context(), gradients.at(own), flat.columns(own.begin, {own.size()}));
      reducer.gather(bucket, flat).wait();
    }
  }
}

}  // namespace sluice
