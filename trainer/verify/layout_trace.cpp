#include "trainer/verify/layout_trace.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "data/files.h"
#include "kernels/core/host_copy.h"
#include "trainer/step_engine.h"

namespace sluice {

namespace {

std::vector<double> as_doubles(const TensorView& view) {
  std::vector<double> values(view.numel());
  if (view.dtype == DType::f64) {
    std::copy_n(view.as<double>(), view.numel(), values.begin());
  } else {
    std::copy_n(view.as<float>(), view.numel(), values.begin());
  }
  return values;
}

// Every parameter of one of the store's arenas, whole. `mesh`: the engine's, in host memory.
std::vector<WholeTensor> gather(const StepEngine& engine, const Mesh& mesh,
                                const TensorView& arena) {
  Communicator& experts = mesh.axis(Axis::ep);
  const HostCopy host(arena, engine.place().stream);
  std::vector<WholeTensor> tensors;
  for (int32_t i = 0; i < int32_t(engine.store().parameters().size()); ++i) {
    const Parameter& parameter = engine.store().parameter({i});
    std::vector<double> values = as_doubles(engine.store().view(host.view(), {i}));
    if (parameter.flags.shards > 1) {
      SLUICE_CHECK(
          parameter.flags.shards == experts.size() && parameter.flags.shard == experts.rank(),
          parameter.name, " is part ", parameter.flags.shard, " of ", parameter.flags.shards,
          " on rank ", experts.rank(), " of ", experts.size());
      std::vector<double> whole(parameter.global_dims.numel());
      experts
          .all_gather(TensorView(values.data(), {int64_t(values.size())}),
                      TensorView(whole.data(), {int64_t(whole.size())}))
          .wait();
      values = std::move(whole);
    }
    tensors.push_back({parameter.name, std::move(values)});
  }
  return tensors;
}

// Of the bits of the values of a reduction group's parameters. Not negative.
int64_t hash_of(const ParameterStore& store, ReduceGroup group) {
  std::string hashes;
  for (int32_t i = 0; i < int32_t(store.parameters().size()); ++i) {
    if (store.parameter({i}).flags.group != group) continue;
    const TensorView value = store.value({i});
    const size_t bytes = size_t(value.numel()) * size_of(value.dtype);
    hashes += std::to_string(xxh3_64({static_cast<const char*>(value.data), bytes})) + " ";
  }
  return int64_t(xxh3_64(hashes) >> 1);
}

bool equal_over(Communicator& group, int64_t value) {
  const int64_t largest = reduce_value(group, value, ReduceOp::max);
  const int64_t smallest = -reduce_value(group, -value, ReduceOp::max);
  return largest == smallest;
}

bool replicas_equal(const StepEngine& engine) {
  const Mesh& mesh = engine.mesh();
  const bool dense =
      equal_over(mesh.joined({Axis::dp, Axis::cp}), hash_of(engine.store(), ReduceGroup::dense));
  const bool experts =
      equal_over(mesh.joined({Axis::edp, Axis::cp}), hash_of(engine.store(), ReduceGroup::expert));
  return reduce_value(mesh.world(), int32_t(dense && experts ? 0 : 1), ReduceOp::max) == 0;
}

// Experts that a token of the batch goes to on `own` and not on `expected`.
void compare_choices(const RoutingTape& own, const RoutingTape& expected, const Batch& batch,
                     const std::vector<BranchConfig>& branches, LayoutTrace& trace) {
  const Rows& rows = batch.rows();
  for (size_t branch = 0; branch < branches.size(); ++branch) {
    const auto* moe = std::get_if<MoeConfig>(&branches[branch].config);
    if (moe == nullptr) continue;
    const int64_t k = moe->top_k;
    const Dims dims{rows.rows, rows.tokens, k};
    std::vector<int32_t> got(dims.numel()), wanted(dims.numel());
    own.read(int64_t(branch), rows, TensorView(got.data(), dims));
    expected.read(int64_t(branch), rows, TensorView(wanted.data(), dims));
    for (int64_t token = 0; token < rows.rows * rows.tokens; ++token) {
      const auto first = wanted.begin() + token * k;
      for (int64_t i = 0; i < k; ++i) {
        ++trace.choices;
        if (std::find(first, first + k, got[token * k + i]) == first + k) ++trace.flipped;
      }
    }
  }
}

class Tracer {
 public:
  Tracer(Communicator& world, const MeshShape& shape, const LayoutRun& run)
      : run_(run),
        host_mesh_(world, shape),
        device_mesh_(run.device_world == nullptr
                         ? nullptr
                         : std::make_unique<Mesh>(*run.device_world, shape)),
        engine_(run.config, device_mesh_ ? *device_mesh_ : host_mesh_, run.dtype, run.place),
        rows_(synthetic_rows(run.config)) {}

  LayoutTrace trace() {
    LayoutTrace trace;
    for (int step = 0; step < run_.steps; ++step) {
      RoutingTape own;
      RoutingTape* routing = run_.routing != nullptr && step == 0 ? run_.routing : &own;
      const StepReport report = take_step(step, routing);
      trace.losses.push_back(report.loss);
      trace.auxiliary.push_back(report.statistics.auxiliary_loss());
      trace.grad_norms.push_back(report.grad_norm);
      if (step > 0) continue;
      trace.gradients = gather(engine_, host_mesh_, gradients());
      if (run_.expected != nullptr) compare(own, trace);
    }
    if (run_.dtype == DType::f64) {
      trace.parameters = gather(engine_, host_mesh_, engine_.store().values());
      trace.replicas_equal = replicas_equal(engine_);
    }
    if (device_mesh_) device_mesh_->shutdown();  // a step with a tape is no graph, which would live
    return trace;
  }

 private:
  StepReport take_step(int step, RoutingTape* routing) {
    int64_t next = 0;
    return engine_.step({.lr = run_.config.optimizer.lr,
                         .targets = rows_.count_targets(step, run_.config.train.global_batch),
                         .next_batch = [&] { return batch(step, next++); },
                         .routing = routing});
  }
  TensorView gradients() {
    const DType dtype = stat_dtype(run_.dtype);
    const int64_t elements = engine_.store().flat_size();
    gradients_ = Buffer(size_t(elements) * size_of(dtype), run_.place.device);
    const TensorView flat(gradients_.data(), {elements}, dtype, run_.place.device);
    engine_.gather_gradients(flat);
    return flat;
  }
  Batch batch(int step, int64_t index) const {
    return rows_.batch(step, engine_.first_row(index), engine_.micro_batch_rows(),
                       engine_.sequence_shard());
  }
  void compare(const RoutingTape& own, LayoutTrace& trace) {
    for (int64_t i = 0; i < engine_.num_micro_batches(); ++i) {
      compare_choices(own, *run_.expected, batch(0, i), run_.config.model.stack.branches, trace);
    }
    trace.choices = reduce_value(host_mesh_.world(), trace.choices, ReduceOp::sum);
    trace.flipped = reduce_value(host_mesh_.world(), trace.flipped, ReduceOp::sum);
  }

  const LayoutRun& run_;
  Mesh host_mesh_;
  std::unique_ptr<Mesh> device_mesh_;  // the engine's, if it is of a GPU
  StepEngine engine_;
  SyntheticRows rows_;
  Buffer gradients_;
};

}  // namespace

SyntheticRows synthetic_rows(const Config& reduced) {
  return {.seed = uint64_t(reduced.seed),
          .row_tokens = reduced.train.seq_len,
          .vocab_size = reduced.model.vocab_size,
          .carries = reduced.data.carry_state};
}

LayoutTrace trace_layout(Communicator& world, const MeshShape& shape, const LayoutRun& run) {
  Tracer tracer(world, shape, run);
  try {
    return tracer.trace();
  } catch (...) {
    // No kernel shall wait for other ranks while memory is freed.
    if (run.device_world != nullptr) run.device_world->abort(ExitCode::hang);
    throw;
  }
}

}  // namespace sluice
