// The reference's loops over a row in float, with polynomials instead of libm's calls, once per
// instruction set. (Under GCC 12's ThreadSanitizer the resolver of clones crashes.)
#include <numbers>

#include "kernels/activation/activation_cpu.h"
#include "kernels/core/fast_math.h"

namespace sluice::cpu {
namespace {

// The normal distribution's function and density, within 6e-7 of their value; in the tails x^2 / 2
// is rounded before it is an exponent, which adds x^2 3e-8.
struct NormalF {
  float cdf;
  float pdf;
};
[[gnu::always_inline]] inline NormalF fast_normal(float x) {
  const float u = x < 0 ? -x : x;
  const float density = fast_exp(-0.5f * u * u);
  // The upper tail over exp(-u^2 / 2), a Mills ratio: minimax in 1 / (1 + 0.3 u), 6e-8.
  const float t = 1.0f / (1.0f + 0.3f * u);
  float ratio = 3.8377951e-2f;
  ratio = ratio * t - 1.6916454e-1f;
  ratio = ratio * t + 2.2865698e-1f;
  ratio = ratio * t - 7.6503143e-2f;
  ratio = ratio * t + 1.4253338e-1f;
  ratio = ratio * t + 9.4684362e-2f;
  ratio = ratio * t + 1.2192015e-1f;
  ratio = ratio * t + 1.1948771e-1f;
  ratio = ratio * t + 7.1676172e-6f;
  const float tail = density * ratio;
  constexpr float kInvSqrt2Pi = std::numbers::inv_sqrtpi_v<float> / std::numbers::sqrt2_v<float>;
  return {.cdf = x < 0 ? tail : 1.0f - tail, .pdf = density * kInvSqrt2Pi};
}

// NaN stays NaN.
[[gnu::always_inline]] inline float relu(float x) { return x < 0 ? 0.0f : x; }

}  // namespace

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void activation_forward_simd(const ActivationForwardRow& row) {
  const float *const x = row.x, *const up = row.up;
  float* const y = row.y;
  switch (row.kind) {
    case Activation::swiglu:
#pragma omp simd
      for (int64_t i = 0; i < row.F; ++i) y[i] = fast_silu(x[i]) * up[i];
      return;
    case Activation::relu2:
#pragma omp simd
      for (int64_t i = 0; i < row.F; ++i) y[i] = relu(x[i]) * relu(x[i]);
      return;
    case Activation::gelu:
#pragma omp simd
      for (int64_t i = 0; i < row.F; ++i) y[i] = x[i] * fast_normal(x[i]).cdf;
      return;
  }
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void activation_backward_simd(const ActivationBackwardRow& row) {
  const float *const dy = row.dy, *const x = row.x, *const up = row.up;
  float *const dx = row.dx, *const dup = row.dup;
  switch (row.kind) {
    case Activation::swiglu:
#pragma omp simd
      for (int64_t i = 0; i < row.F; ++i) {
        const float sigmoid = fast_sigmoid(x[i]);
        const float gate_share = dy[i] * up[i] * silu_slope(x[i], sigmoid);
        dup[i] = dy[i] * x[i] * sigmoid;
        dx[i] = gate_share;
      }
      return;
    case Activation::relu2:
#pragma omp simd
      for (int64_t i = 0; i < row.F; ++i) dx[i] = dy[i] * 2 * relu(x[i]);
      return;
    case Activation::gelu:
#pragma omp simd
      for (int64_t i = 0; i < row.F; ++i) {
        const NormalF normal = fast_normal(x[i]);
        dx[i] = dy[i] * (normal.cdf + x[i] * normal.pdf);
      }
      return;
  }
}

}  // namespace sluice::cpu
