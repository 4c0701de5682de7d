#include "trainer/engine_state.h"

namespace sluice {

namespace {

struct StateTensors {
  const char* prefix;
  TensorKind kind;
  HeldTensor held;
};

std::vector<StateTensors> state_tensors(const StepEngine& engine) {
  return {{"", TensorKind::model, {engine.store().values()}},
          {"exp_avg/", TensorKind::optim, engine.optimizer().exp_avg()},
          {"exp_avg_sq/", TensorKind::optim, engine.optimizer().exp_avg_sq()}};
}

// Elements [begin, end) of the arena, as part of the whole parameter that they belong to.
Region region_of(const Parameter& parameter, const Slice& part) {
  const int64_t first = parameter.first_element() - parameter.offset;
  return flat_region(parameter.global_dims, first + part.begin, first + part.end);
}

}  // namespace

std::vector<LocalPiece> pieces_to_save(const StepEngine& engine) {
  std::vector<LocalPiece> pieces;
  for (const StateTensors& state : state_tensors(engine)) {
    for (const Parameter& parameter : engine.store().parameters()) {
      const int64_t end = parameter.offset + parameter.dims.numel();
      for (const Slice& part : engine.arena().owned().within(parameter.offset, end)) {
        pieces.push_back({.name = state.prefix + parameter.name,
                          .kind = state.kind,
                          .dtype = state.held.data.dtype,
                          .dims = parameter.global_dims,
                          .parts = parameter.parts,
                          .region = region_of(parameter, part),
                          .data = state.held.at(part).data});
      }
    }
  }
  return pieces;
}

std::vector<TensorSink> sinks_to_load(StepEngine& engine, LoadScope scope) {
  std::vector<TensorSink> sinks;
  for (const StateTensors& state : state_tensors(engine)) {
    if (scope == LoadScope::model_only && state.kind != TensorKind::model) continue;
    for (const Parameter& parameter : engine.store().parameters()) {
      const int64_t end = parameter.offset + parameter.dims.numel();
      const auto add = [&](const Slice& part, void* data) {
        sinks.push_back({.name = state.prefix + parameter.name,
                         .dtype = state.held.data.dtype,
                         .dims = parameter.global_dims,
                         .region = region_of(parameter, part),
                         .data = data});
      };
      // Also of what this rank has no part, so that the name counts as known.
      add({parameter.offset, parameter.offset}, nullptr);
      if (state.held.packed == nullptr) {
        const Slice whole{parameter.offset, end};
        add(whole, state.held.at(whole).data);
        continue;
      }
      for (const Slice& part : state.held.packed->within(parameter.offset, end))
        add(part, state.held.at(part).data);
    }
  }
  return sinks;
}

}  // namespace sluice
