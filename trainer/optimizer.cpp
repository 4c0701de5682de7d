#include "trainer/optimizer.h"

#include <algorithm>

#include "kernels/adamw/adamw.h"

namespace sluice {

namespace {

TensorView span_of(const TensorView& flat, int64_t begin, int64_t end) {
  return flat.columns(begin, {end - begin});
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store, bool allocate)
    : config_(config), store_(store) {
  const DType dtype = stat_dtype(store.dtype());
  const int64_t bytes = store.flat_size() * int64_t(size_of(dtype));
  if (allocate) storage_ = Buffer(2 * bytes, kCpu);
  char* const data = static_cast<char*>(storage_.data());
  exp_avg_ = TensorView(data, {store.flat_size()}, dtype);
  exp_avg_sq_ = TensorView(data == nullptr ? nullptr : data + bytes, {store.flat_size()}, dtype);

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

void Optimizer::update(const Context& ctx, double lr, double grad_scale) {
  ++t_;
  for (const Span& span : spans_) {
    adamw(ctx, {.value = span_of(store_.values(), span.begin, span.end),
                .grad = span_of(store_.gradients(), span.begin, span.end),
                .exp_avg = span_of(exp_avg_, span.begin, span.end),
                .exp_avg_sq = span_of(exp_avg_sq_, span.begin, span.end),
                .lr = lr * span.lr_scale,
                .beta1 = config_.betas[0],
                .beta2 = config_.betas[1],
                .eps = config_.eps,
                .weight_decay = span.weight_decay,
                .grad_scale = grad_scale,
                .t = t_});
  }
}

}  // namespace sluice
