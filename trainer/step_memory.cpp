#include "trainer/step_memory.h"

#include <algorithm>
#include <vector>

namespace sluice {

namespace {

// Shapes without memory: what dispatchers check in counting mode. Of B rows, the tokens of sequence
// rank `shard` of `shards`.
struct CountingRows {
  CountingRows(Device device, int64_t B, int64_t row_tokens, int shards = 1, int shard = 0) {
    const Slice own = slice_of(row_tokens, shards, shard);
    index = ConstTensorView(nullptr, {B, own.size()}, DType::i32, device);
    rows = {.first_row = 0,
            .rows = B,
            .step_rows = B,
            .row_tokens = row_tokens,
            .begin = own.begin,
            .tokens = own.size(),
            .doc_begin = ConstTensorView(nullptr, {B, row_tokens}, DType::i32, device),
            .local_doc_begin = index,
            .positions = index,
            .cuts = {}};
    for (int i = 0; i < shards; ++i) rows.cuts.push_back(slice_of(row_tokens, shards, i).begin);
    rows.cuts.push_back(row_tokens);
  }
  ModelInput input() const { return {.tokens = index, .targets = index, .rows = rows}; }
  ConstTensorView index;
  Rows rows;
};

template <class Body>
ArenaPeaks count(Device device, Body&& body) {
  StepArenas arenas({.device = device});
  body(arenas.context());
  return arenas.peaks();
}

void count_both(const Context& ctx, const Model& model, const ModelInput& input) {
  const TensorView loss(nullptr, {1}, DType::f64, ctx.device);
  model.train(ctx, input, {.loss = loss});
  model.evaluate(ctx, input, loss);
}

}  // namespace

LayerGroups layer_groups(const Mesh& mesh) {
  return {.sequence = &mesh.axis(Axis::cp), .experts = &mesh.axis(Axis::ep)};
}

PlannedModel::PlannedModel(const ModelConfig& config, const ModelBuild& build, DType dtype,
                           const MeshShape& shape, int rank)
    : mesh_(shape, rank), store_(dtype), model_(config, store_, [&] {
        ModelBuild planned = build;
        planned.groups = layer_groups(mesh_);
        return planned;
      }()) {
  store_.freeze(/*allocate=*/false);
  store_.bind_gradients(TensorView(nullptr, {store_.flat_size()}, store_.master_dtype()));
}

ArenaPeaks PlannedModel::count_training(int64_t B, int64_t row_tokens) const {
  const CountingRows rows(store_.device(), B, row_tokens, mesh_.shape().cp, mesh_.at().cp);
  return count(store_.device(), [&](const Context& ctx) { count_both(ctx, model_, rows.input()); });
}

ArenaPeaks count_training(const Model& model, int64_t B, int64_t T) {
  const CountingRows rows(model.device(), B, T);
  return count(model.device(), [&](const Context& ctx) { count_both(ctx, model, rows.input()); });
}

ArenaPeaks count_evaluation(const Model& model, int64_t B, int64_t T) {
  const CountingRows rows(model.device(), B, T);
  const TensorView loss(nullptr, {1}, DType::f64, model.device());
  return count(model.device(),
               [&](const Context& ctx) { model.evaluate(ctx, rows.input(), loss); });
}

ArenaPeaks count_logits(const Model& model, int64_t B, int64_t T) {
  const CountingRows rows(model.device(), B, T);
  const TensorView logits(nullptr, {B, T, model.config().vocab_size}, stat_dtype(model.dtype()),
                          model.device());
  return count(model.device(),
               [&](const Context& ctx) { model.logits(ctx, rows.input(), logits); });
}

ArenaPeaks count_step(const Model& model, int64_t B, int64_t max_tokens) {
  std::vector<TensorView> states;
  for (const StateTensor& spec : model.state_spec(B, max_tokens)) {
    states.emplace_back(nullptr, spec.dims, spec.dtype, model.device());
  }
  const ConstTensorView tokens(nullptr, {B}, DType::i32, model.device());
  const TensorView logits(nullptr, {B, model.config().vocab_size}, model.dtype(), model.device());
  return count(model.device(), [&](const Context& ctx) {
    for (const int64_t position : {int64_t{0}, max_tokens - 1})
      model.step(ctx, tokens, position, states, logits);
  });
}

}  // namespace sluice
