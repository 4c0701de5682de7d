// AdamW in float: the reference's formulas as a loop that vectorises, once per instruction set.
#include <cmath>

#include "kernels/adamw/adamw_cpu.h"

namespace sluice::cpu {

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void adamw_simd(const AdamWFactors& factors, int64_t n, const float* __restrict grad,
                float* __restrict value, float* __restrict m, float* __restrict v) {
  const float beta1 = float(factors.beta1), rest1 = float(1 - factors.beta1);
  const float beta2 = float(factors.beta2), rest2 = float(1 - factors.beta2);
  const float grad_scale = float(factors.grad_scale);
  const float step = float(factors.step), decay = float(factors.decay);
  const float root_unbias_v = float(factors.root_unbias_v), eps = float(factors.eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad_scale * grad[i];
    m[i] = beta1 * m[i] + rest1 * g;
    v[i] = beta2 * v[i] + rest2 * (g * g);
    value[i] -= step * m[i] / (std::sqrt(v[i]) * root_unbias_v + eps) + decay * value[i];
  }
}

}  // namespace sluice::cpu
