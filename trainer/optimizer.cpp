#include "trainer/optimizer.h"

#include <algorithm>

#include "kernels/adamw/adamw.h"

namespace sluice {

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store,
                     const PackedSlices& held, bool allocate)
    : config_(config), store_(store), held_(held) {
  const DType dtype = stat_dtype(store.dtype());
  const int64_t bytes = held.elements() * int64_t(size_of(dtype));
  if (allocate) storage_ = Buffer(2 * bytes, kCpu);
  char* const data = static_cast<char*>(storage_.data());
  exp_avg_ = TensorView(data, {held.elements()}, dtype);
  exp_avg_sq_ = TensorView(data == nullptr ? nullptr : data + bytes, {held.elements()}, dtype);

  std::vector<int32_t> order(store.parameters().size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return store.parameters()[a].offset < store.parameters()[b].offset;
  });
  for (const int32_t index : order) {
    const Parameter& parameter = store.parameters()[index];
    if (parameter.flags.frozen) continue;
    const Span span{parameter.offset, store.padded_end({index}),
                    parameter.flags.decay ? config.weight_decay : 0.0, parameter.flags.lr_scale};
    const bool joins = !spans_.empty() && spans_.back().end == span.begin &&
                       spans_.back().weight_decay == span.weight_decay &&
                       spans_.back().lr_scale == span.lr_scale;
    if (joins) {
      spans_.back().end = span.end;
    } else {
      spans_.push_back(span);
    }
  }
}

void Optimizer::update(const Context& ctx, const Update& update, const Slice& part) {
  auto span = std::partition_point(spans_.begin(), spans_.end(), [&](const Span& candidate) {
    return candidate.end <= part.begin;
  });
  for (; span != spans_.end() && span->begin < part.end; ++span) {
    const Slice both{std::max(part.begin, span->begin), std::min(part.end, span->end)};
    adamw(ctx, {.value = store_.values().columns(both.begin, {both.size()}),
                .grad = update.gradients.at(both),
                .exp_avg = exp_avg().at(both),
                .exp_avg_sq = exp_avg_sq().at(both),
                .lr = update.lr * span->lr_scale,
                .beta1 = config_.betas[0],
                .beta2 = config_.betas[1],
                .eps = config_.eps,
                .weight_decay = span->weight_decay,
                .grad_scale = update.grad_scale,
                .t = t_});
  }
}

}  // namespace sluice
