#include "trainer/engine_state.h"

namespace sluice {

namespace {

struct StateTensors {
  const char* prefix;
  TensorKind kind;
  HeldTensor held;
};

std::vector<StateTensors> state_tensors(const StepEngine& engine, const HostState& host) {
  return {
      {"", TensorKind::model, {host.values.view()}},
      {"exp_avg/", TensorKind::optim, {host.exp_avg.view(), engine.optimizer().exp_avg().packed}},
      {"exp_avg_sq/",
       TensorKind::optim,
       {host.exp_avg_sq.view(), engine.optimizer().exp_avg_sq().packed}}};
}

// Elements [begin, end) of the arena, as part of the whole parameter that they belong to.
Region region_of(const Parameter& parameter, const Slice& part) {
  const int64_t first = parameter.first_element() - parameter.offset;
  return flat_region(parameter.global_dims, first + part.begin, first + part.end);
}

// A rank's rows of a carried state, one micro-batch a part: in the checkpoint they are those of the
// whole batch.
struct CarriedPart {
  std::string name;
  DType dtype;
  Dims dims;
  Region region;
  void* data;
};

std::vector<CarriedPart> carried_parts(const StepEngine& engine, const HostState& host) {
  std::vector<CarriedPart> parts;
  if (engine.carried() == nullptr) return parts;
  auto copy = host.carried.begin();
  const int64_t rows = engine.micro_batch_rows();
  const int64_t of_rank = engine.num_micro_batches() * rows;
  for (const CarriedStates::Named& state : engine.carried()->incoming()) {
    const int64_t row_size = state.rows.numel() / of_rank;
    Dims dims = state.rows.dims;
    dims.size[0] = of_rank * engine.mesh().shape().dp;
    const TensorView flat = (copy++)->view();
    for (int64_t i = 0; i < engine.num_micro_batches(); ++i) {
      const int64_t first = engine.first_row(i);
      parts.push_back({.name = "carried/" + state.name,
                       .dtype = flat.dtype,
                       .dims = dims,
                       .region = flat_region(dims, first * row_size, (first + rows) * row_size),
                       .data = flat.columns(i * rows * row_size, {rows * row_size}).data});
    }
  }
  return parts;
}

}  // namespace

HostState::HostState(const StepEngine& engine)
    : values(engine.store().values(), engine.place().stream),
      exp_avg(engine.optimizer().exp_avg().data, engine.place().stream),
      exp_avg_sq(engine.optimizer().exp_avg_sq().data, engine.place().stream) {
  if (engine.carried() == nullptr) return;
  for (const CarriedStates::Named& state : engine.carried()->incoming())
    carried.emplace_back(state.rows.reshape({state.rows.numel()}), engine.place().stream);
}

void HostState::write_back(StepEngine& engine) const {
  for (const HostCopy* copy : {&values, &exp_avg, &exp_avg_sq}) copy->write_back();
  for (const HostCopy& copy : carried) copy.write_back();
  engine.store().round_values(engine.place().stream);
}

std::vector<LocalPiece> pieces_to_save(const StepEngine& engine, const HostState& host) {
  std::vector<LocalPiece> pieces;
  if (engine.mesh().at().cp == 0) {  // ranks that share rows hold the same
    for (const CarriedPart& part : carried_parts(engine, host)) {
      pieces.push_back({.name = part.name,
                        .kind = TensorKind::optim,
                        .dtype = part.dtype,
                        .dims = part.dims,
                        .region = part.region,
                        .data = part.data});
    }
  }
  for (const StateTensors& state : state_tensors(engine, host)) {
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

std::vector<TensorSink> sinks_to_load(const StepEngine& engine, const HostState& host,
                                      LoadScope scope) {
  std::vector<TensorSink> sinks;
  if (scope == LoadScope::all) {
    for (const CarriedPart& part : carried_parts(engine, host))
      sinks.push_back({part.name, part.dtype, part.dims, part.region, part.data});
  }
  for (const StateTensors& state : state_tensors(engine, host)) {
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
