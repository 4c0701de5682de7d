#include "kernels/adamw/adamw_cpu.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace sluice::cpu {
namespace {

// Elements of a block: its four arrays are 256 KiB, a share of the second-level cache.
constexpr int64_t kBlock = 16384;

template <class T>
void adamw_block(const AdamWFactors& factors, int64_t n, const T* grad, T* value, T* m, T* v) {
  const T beta1(factors.beta1), rest1(1 - factors.beta1);
  const T beta2(factors.beta2), rest2(1 - factors.beta2);
  for (int64_t i = 0; i < n; ++i) {
    const T g = T(factors.grad_scale) * grad[i];
    m[i] = beta1 * m[i] + rest1 * g;
    v[i] = beta2 * v[i] + rest2 * (g * g);
    const T root = std::sqrt(v[i]) * T(factors.root_unbias_v);
    value[i] -= T(factors.step) * m[i] / (root + T(factors.eps)) + T(factors.decay) * value[i];
  }
}

}  // namespace

AdamWFactors::AdamWFactors(const AdamW& args, double weight_decay, double lr_scale)
    : beta1(args.beta1), beta2(args.beta2), eps(args.eps) {
  const double* const scalars = args.scalars.as<double>();
  const double lr = scalars[kLearningRate] * lr_scale;
  grad_scale = scalars[kGradScale];
  step = lr / scalars[kCorrection1];
  root_unbias_v = 1 / std::sqrt(scalars[kCorrection2]);
  decay = lr * weight_decay;
}

namespace {

// Elements [begin, end) of the views.
template <class T>
void update_span(const AdamW& args, const AdamWFactors& factors, int64_t begin, int64_t end) {
  const T* const grad = args.grad.as<T>();
  T* const value = args.value.as<T>();
  T* const m = args.exp_avg.as<T>();
  T* const v = args.exp_avg_sq.as<T>();
  bf16* const rounded = args.rounded ? args.rounded.as<bf16>() : nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = std::min(kBlock, end - i);
    if constexpr (std::is_same_v<T, float>) {
      adamw_simd(factors, count, grad + i, value + i, m + i, v + i);
    } else {
      adamw_block(factors, count, grad + i, value + i, m + i, v + i);
    }
    if (rounded == nullptr) continue;
    for (int64_t j = i; j < i + count; ++j) rounded[j] = bf16(float(value[j]));
  }
}

}  // namespace

template <class T>
void adamw(const AdamW& args) {
  if (args.scalars.as<double>()[kApply] == 0) return;
  const int64_t n = args.value.numel();
  for (int64_t i = 0; i < args.spans.dim(0); ++i) {
    const double* const span = args.spans.row<double>(i);
    const int64_t begin = std::max<int64_t>(0, int64_t(span[kSpanBegin]) - args.first);
    const int64_t end = std::min(n, int64_t(span[kSpanEnd]) - args.first);
    if (begin >= end) continue;
    const AdamWFactors factors(args, span[kSpanWeightDecay], span[kSpanLrScale]);
    update_span<T>(args, factors, begin, end);
  }
}

template void adamw<float>(const AdamW&);
template void adamw<double>(const AdamW&);

}  // namespace sluice::cpu
