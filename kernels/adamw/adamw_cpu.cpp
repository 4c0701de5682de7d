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

AdamWFactors::AdamWFactors(const AdamW& args)
    : beta1(args.beta1),
      beta2(args.beta2),
      grad_scale(args.grad_scale),
      step(args.lr / (1 - std::pow(args.beta1, double(args.t)))),
      root_unbias_v(1 / std::sqrt(1 - std::pow(args.beta2, double(args.t)))),
      eps(args.eps),
      decay(args.lr * args.weight_decay) {}

template <class T>
void adamw(const AdamW& args) {
  const AdamWFactors factors(args);
  const int64_t n = args.value.numel();
  const T* const grad = args.grad.as<T>();
  T* const value = args.value.as<T>();
  T* const m = args.exp_avg.as<T>();
  T* const v = args.exp_avg_sq.as<T>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    if constexpr (std::is_same_v<T, float>) {
      adamw_simd(factors, count, grad + i, value + i, m + i, v + i);
    } else {
      adamw_block(factors, count, grad + i, value + i, m + i, v + i);
    }
  }
}

template void adamw<float>(const AdamW&);
template void adamw<double>(const AdamW&);

}  // namespace sluice::cpu
