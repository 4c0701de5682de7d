#include "trainer/step_engine.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/device_memory.h"
#include "kernels/core/profile_range.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/grad_norm/grad_norm.h"

namespace sluice {

namespace {

double per_target(const StepInput& input) {
  return 1.0 / double(std::max<int64_t>(1, input.targets));
}

// Their exchange between ranks asks the host for counts.
bool has_dropless_experts(const Model& model) {
  return std::any_of(model.branches().begin(), model.branches().end(), [](const auto& branch) {
    const MoeConfig* const moe = std::get_if<MoeConfig>(&branch.config);
    return moe != nullptr && moe->dropless();
  });
}

}  // namespace

StepEngine::StepEngine(const Config& config, const Mesh& mesh, DType dtype, const Place& place)
    : config_(config),
      mesh_(mesh),
      place_(place),
      micro_batches_(deal_micro_batches(config.train, config.parallel.zero, mesh.shape().dp)),
      store_(dtype, place.device),
      model_(config.model, store_,
             {.recompute = config.train.recompute,
              .groups = layer_groups(mesh),
              .carry_state = config.data.carry_state}),
      arena_((store_.freeze(!mesh.planned(), ShardedArena::units(mesh)), store_), mesh,
             config.parallel.zero),
      optimizer_(config.optimizer, store_, arena_.held(), !mesh.planned()),
      accumulation_(store_, model_, arena_, mesh, micro_batches_, config.train.reproducible,
                    !mesh.planned()),
      squares_(arena_, mesh, place.device, !mesh.planned()),
      norm_storage_(mesh.planned() ? 0 : sizeof(double), place.device),
      norm_(norm_storage_.data(), {1}, DType::f64, place.device),
      carried_(config.data.carry_state ? std::make_unique<CarriedStates>(
                                             model_, micro_batches_.count, micro_batches_.rows,
                                             place.device, !mesh.planned())
                                       : nullptr),
      arenas_(make_arenas()) {
  const bool runs_on_gpu = place.device.is_cuda() && !mesh.planned();
  if (runs_on_gpu && why_no_graph().empty()) graph_ = std::make_unique<DeviceGraph>();
  if (!mesh.planned()) store_.initialise(uint64_t(config.seed));
}

// A step is one graph where its launches are the same every time, and the host reads nothing
// within.
std::string StepEngine::why_no_graph() const {
  if (!config_.train.graph) return "train.graph is false";
  if (carried_ != nullptr) return "data.carry_state exchanges the states of rows between steps";
  if (mesh_.shape().ep > 1 && has_dropless_experts(model_))
    return "the host reads how many tokens travel to experts; with moe.capacity_factor it need not";
  return "";
}

std::string StepEngine::describe_launches() const {
  if (place_.device.is_cpu()) return "";
  const std::string why_not = why_no_graph();
  return why_not.empty() ? "a step is one CUDA graph"
                         : "a step is launched anew each time: " + why_not;
}

// As large as a step with one micro-batch, or an evaluation, says.
StepArenas StepEngine::make_arenas() const {
  if (mesh_.planned()) return StepArenas(place_);
  Config config = config_;
  config.train.global_batch = config.train.micro_batch * mesh_.shape().dp;
  const Mesh mesh(mesh_.shape(), mesh_.world().rank());
  StepEngine counting(config, mesh, store_.dtype(), place_);
  counting.count_step();
  counting.count_evaluation();
  return StepArenas(counting.arenas_.peaks(), place_);
}

EngineMemory StepEngine::memory() const {
  const ArenaPeaks arenas = mesh_.planned() ? arenas_.peaks() : arenas_.capacities();
  return {.values = store_.value_bytes(),
          .gradients = accumulation_.bytes(),
          .optimizer = optimizer_.bytes(),
          .saved = int64_t(arenas.saved),
          .scratch = int64_t(arenas.scratch),
          .carried = carried_ ? carried_->bytes() : 0};
}

StepReport StepEngine::step(const StepInput& input) {
  const ProfileRange range("step");
  const Context ctx = arenas_.context();
  optimizer_.begin_update(ctx, input.lr);
  accumulation_.load(ctx, input.next_batch, per_target(input));
  if (!graph_ || input.routing != nullptr) {
    enqueue(input);
  } else if (graph_->captured()) {
    graph_->launch(place_.stream);
  } else if (++steps_before_graph_ == 1) {
    enqueue(input);  // libraries set themselves up in a first step
  } else {
    graph_->capture(place_.stream, [&] { enqueue(input); });
    graph_->launch(place_.stream);
  }
  if (input.stage_next && place_.device.is_cuda()) accumulation_.stage(ctx, input.next_batch);
  StepReport report = read_report(input);
  end_step(report);
  return report;
}

void StepEngine::enqueue(const StepInput& input) {
  accumulate_gradients(input);
  clip();
  update();
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
  Batch batch = Batch::planned(micro_batches_.rows, config_.train.seq_len, sequence_shard(),
                               config_.train.global_batch);
  DeviceBatch here;
  here.load(arenas_.context(), std::move(batch));
  model_.evaluate(arenas_.context(), here.input(),
                  TensorView(nullptr, {1}, DType::f64, place_.device));
}

void StepEngine::accumulate_gradients(const StepInput& input) {
  accumulation_.run(arenas_.context(), model_,
                    {.routing = input.routing, .carried = carried_.get()});
}

// All ranks find the same loss and norm, so they decide alike.
void StepEngine::clip() {
  const Context ctx = arenas_.context();
  clip_gradient(ctx, {.squares = squares_.squares(ctx, accumulation_.gradients()),
                      .loss = accumulation_.loss(),
                      .clip = config_.optimizer.clip,
                      .norm = norm_,
                      .grad_scale = optimizer_.grad_scale(),
                      .apply = optimizer_.apply()});
}

// A bucket's values are on their way while the next bucket is updated: as they are read, so that of
// a bf16 model 2 bytes of most parameters travel, not 4.
void StepEngine::update() {
  const ProfileRange range("optimizer");
  const Context ctx = arenas_.context();
  const HeldTensor gradients = accumulation_.gradients();
  if (!arena_.shards_state()) return optimizer_.update(ctx, gradients, {0, store_.flat_size()});
  std::vector<Event> in_flight;
  for (size_t i = 0; i < arena_.groups().size(); ++i) {
    const GradientReducer& reducer = accumulation_.reducers()[i];
    const TensorView read = arena_.groups()[i].rounded ? store_.rounded() : store_.values();
    for (size_t bucket = 0; bucket < reducer.buckets().size(); ++bucket) {
      optimizer_.update(ctx, gradients, reducer.shards()[bucket]);
      in_flight.push_back(reducer.gather(bucket, read));
    }
  }
  for (const Event& event : in_flight) event.order(ctx.stream);
}

StepReport StepEngine::read_report(const StepInput& input) const {
  const Context ctx = arenas_.context();
  StepReport report{.lr = input.lr, .statistics = {}};
  if (ctx.counting()) return report;
  mesh_.world().sync(place_.stream);  // the host waits here, where it learns of failures
  StepSums sums = accumulation_.read_sums(ctx);
  report.loss = sums.loss * per_target(input);
  report.statistics = std::move(sums.statistics);
  report.grad_norm = to_host(norm_, ctx.stream).front();
  report.finite = to_host(optimizer_.apply(), ctx.stream).front() != 0;
  return report;
}

void StepEngine::end_step(const StepReport& report) {
  if (carried_) carried_->end_step(report.finite);
  if (!report.finite) return;
  optimizer_.count_update();
  model_.end_step(arenas_.context(), report.statistics);
}

void StepEngine::gather_gradients(const TensorView& flat) {
  expect("gradients", flat, {store_.flat_size()}, store_.master_dtype(), place_.device);
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
