#include "trainer/optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/core/host_copy.h"

namespace sluice {

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store,
                     const PackedSlices& held, bool allocate)
    : config_(config), store_(store), held_(held) {
  const DType dtype = store.master_dtype();
  const int64_t elements = held.elements();
  if (allocate) moments_ = Buffer(2 * elements * size_of(dtype), store.device());
  const TensorView both(moments_.data(), {2 * elements}, dtype, store.device());
  exp_avg_ = both.columns(0, {elements});
  exp_avg_sq_ = both.columns(elements, {elements});

  find_spans();
  const int64_t numbers = int64_t(host_spans_.size());
  if (allocate) tables_ = Buffer((kNumUpdateScalars + numbers) * sizeof(double), store.device());
  const TensorView tables(tables_.data(), {kNumUpdateScalars + numbers}, DType::f64,
                          store.device());
  scalars_ = tables.columns(0, {kNumUpdateScalars});
  const TensorView flat = tables.columns(kNumUpdateScalars, {numbers});
  spans_ = flat.reshape({numbers / kNumSpanColumns, kNumSpanColumns});
  if (!allocate) return;
  const OwnedStream stream(store.device());
  const HostCopy host(flat, stream, HostCopy::Content::unread);
  std::copy(host_spans_.begin(), host_spans_.end(), host.view().as<double>());
  host.write_back();
}

void Optimizer::find_spans() {
  const std::vector<Parameter>& parameters = store_.parameters();
  std::vector<int32_t> order(parameters.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return parameters[a].offset < parameters[b].offset; });
  for (const int32_t index : order) {
    const Parameter& parameter = parameters[index];
    if (parameter.flags.frozen) continue;
    std::array<double, kNumSpanColumns> span{};
    span[kSpanBegin] = double(parameter.offset);
    span[kSpanEnd] = double(store_.padded_end({index}));
    span[kSpanWeightDecay] = parameter.flags.decay ? config_.weight_decay : 0.0;
    span[kSpanLrScale] = parameter.flags.lr_scale;
    double* const last =
        host_spans_.empty() ? nullptr : &host_spans_[host_spans_.size() - kNumSpanColumns];
    const bool joins = last != nullptr && last[kSpanEnd] == span[kSpanBegin] &&
                       last[kSpanWeightDecay] == span[kSpanWeightDecay] &&
                       last[kSpanLrScale] == span[kSpanLrScale];
    if (joins) {
      last[kSpanEnd] = span[kSpanEnd];
    } else {
      host_spans_.insert(host_spans_.end(), span.begin(), span.end());
    }
  }
}

void Optimizer::begin_update(const Context& ctx, double lr) {
  if (ctx.counting()) return;
  const double t = double(t_ + 1);
  std::array<double, kGradScale> host{};
  host[kLearningRate] = lr;
  host[kCorrection1] = 1 - std::pow(config_.betas[0], t);
  host[kCorrection2] = 1 - std::pow(config_.betas[1], t);
  copy_bytes(scalars_.data, ctx.device, host.data(), kCpu, sizeof(host), ctx.stream);
}

void Optimizer::update(const Context& ctx, const HeldTensor& gradients, const Slice& part) const {
  if (part.size() == 0) return;
  const TensorView rounded = store_.rounded();
  // What is held in one piece is updated in one piece: neighbours may lie apart when packed.
  for (const Slice& piece : held_.within(part.begin, part.end)) {
    adamw(ctx, {.value = store_.values().columns(piece.begin, {piece.size()}),
                .rounded = rounded ? rounded.columns(piece.begin, {piece.size()}) : TensorView{},
                .grad = gradients.at(piece),
                .exp_avg = exp_avg().at(piece),
                .exp_avg_sq = exp_avg_sq().at(piece),
                .scalars = scalars_,
                .spans = spans_,
                .first = piece.begin,
                .beta1 = config_.betas[0],
                .beta2 = config_.betas[1],
                .eps = config_.eps});
  }
}

}  // namespace sluice
