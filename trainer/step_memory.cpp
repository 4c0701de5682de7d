#include "trainer/step_memory.h"

#include <algorithm>
#include <vector>

namespace sluice {

namespace {

// Shapes without memory: what dispatchers check in counting mode.
struct CountingRows {
  CountingRows(int64_t B, int64_t T) : index(nullptr, {B, T}, DType::i32) {
    rows = {.first_row = 0,
            .rows = B,
            .step_rows = B,
            .row_tokens = T,
            .begin = 0,
            .tokens = T,
            .doc_begin = index,
            .local_doc_begin = index,
            .positions = index,
            .cuts = {0, T}};
  }
  ModelInput input() const { return {.tokens = index, .targets = index, .rows = rows}; }
  ConstTensorView index;
  Rows rows;
};

template <class Body>
ArenaPeaks count(Body&& body) {
  Arena saved = Arena::counting("saved", kCpu);
  Arena scratch = Arena::counting("scratch", kCpu);
  body(Context{.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}});
  return {saved.peak(), scratch.peak()};
}

}  // namespace

ArenaPeaks count_training(const Model& model, int64_t B, int64_t T) {
  const CountingRows rows(B, T);
  return count([&](const Context& ctx) {
    model.train(ctx, rows.input(), {});
    model.evaluate(ctx, rows.input());
  });
}

ArenaPeaks count_logits(const Model& model, int64_t B, int64_t T) {
  const CountingRows rows(B, T);
  const TensorView logits(nullptr, {B, T, model.config().vocab_size}, model.dtype());
  return count([&](const Context& ctx) { model.logits(ctx, rows.input(), logits); });
}

ArenaPeaks count_step(const Model& model, int64_t B, int64_t max_tokens) {
  std::vector<TensorView> states;
  for (const StateTensor& spec : model.state_spec(B, max_tokens)) {
    states.emplace_back(nullptr, spec.dims, spec.dtype);
  }
  const ConstTensorView tokens(nullptr, {B}, DType::i32);
  const TensorView logits(nullptr, {B, model.config().vocab_size}, model.dtype());
  return count([&](const Context& ctx) { model.step(ctx, tokens, 0, states, logits); });
}

}  // namespace sluice
