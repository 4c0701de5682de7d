// The formulas over one group in float, once per instruction set. Loops hold float alone, which
// vectorises; their sums over kSumBlock elements go on in double. (Under GCC 12's ThreadSanitizer
// the resolver of clones crashes.)
#include <algorithm>
#include <cmath>

#include "kernels/core/fast_math.h"
#include "kernels/gated_rms_norm/gated_rms_norm_cpu.h"

namespace sluice::cpu {
namespace {

constexpr int64_t kSumBlock = 512;

using Forward = GatedNormForwardGroup<float>;
using Backward = GatedNormBackwardGroup<float>;

[[gnu::always_inline]] inline double inverse_root(double squares, int64_t width, double eps) {
  return 1 / std::sqrt(squares / double(width) + eps);
}

[[gnu::always_inline]] inline void gate_then_norm(const Forward& g) {
  const float *const x = g.x, *const z = g.z, *const weight = g.weight;
  float* const y = g.y;
  double squares = 0;
  for (int64_t begin = 0; begin < g.width; begin += kSumBlock) {
    const int64_t end = std::min(g.width, begin + kSumBlock);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const float h = x[i] * fast_silu(z[i]);
      y[i] = h;
      sum += h * h;
    }
    squares += sum;
  }
  const float rstd = float(inverse_root(squares, g.width, g.eps));
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) y[i] = weight[i] * (y[i] * rstd);
}

[[gnu::always_inline]] inline void norm_then_gate(const Forward& g) {
  const float *const x = g.x, *const z = g.z, *const weight = g.weight;
  float* const y = g.y;
  double squares = 0;
  for (int64_t begin = 0; begin < g.width; begin += kSumBlock) {
    const int64_t end = std::min(g.width, begin + kSumBlock);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += x[i] * x[i];
    squares += sum;
  }
  const float rstd = float(inverse_root(squares, g.width, g.eps));
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) y[i] = weight[i] * (x[i] * rstd) * fast_silu(z[i]);
}

// Of the group's squares, and of the weighted gradient with what they are of.
struct Sums {
  double squares = 0;
  double dot = 0;
};

// rstd, and what the second pass takes n by: mean(g n).
struct Scales {
  float rstd = 0;
  float mean = 0;
};
[[gnu::always_inline]] inline Scales scales_of(const Sums& sums, const Backward& g) {
  const double rstd = inverse_root(sums.squares, g.width, g.eps);
  return {.rstd = float(rstd), .mean = float(sums.dot * rstd / double(g.width))};
}

// dz holds sigmoid(z) between the two passes.
[[gnu::always_inline]] inline void gate_then_norm_backward(const Backward& g) {
  const float *const dy = g.dy, *const x = g.x, *const z = g.z, *const weight = g.weight;
  float *const dx = g.dx, *const dz = g.dz, *const dweight = g.dweight;
  Sums sums;
  for (int64_t begin = 0; begin < g.width; begin += kSumBlock) {
    const int64_t end = std::min(g.width, begin + kSumBlock);
    float squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
    for (int64_t i = begin; i < end; ++i) {
      const float sigmoid = fast_sigmoid(z[i]);
      const float h = x[i] * (z[i] * sigmoid);
      dz[i] = sigmoid;
      squares += h * h;
      dot += weight[i] * dy[i] * h;
    }
    sums.squares += squares, sums.dot += dot;
  }
  const Scales scales = scales_of(sums, g);
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) {
    const float sigmoid = dz[i], silu = z[i] * sigmoid;
    const float n = x[i] * silu * scales.rstd;
    const float dh = scales.rstd * (weight[i] * dy[i] - n * scales.mean);
    dweight[i] += dy[i] * n;
    dz[i] = dh * x[i] * silu_slope(z[i], sigmoid);
    dx[i] = dh * silu;
  }
}

[[gnu::always_inline]] inline void norm_then_gate_backward(const Backward& g) {
  const float *const dy = g.dy, *const x = g.x, *const z = g.z, *const weight = g.weight;
  float *const dx = g.dx, *const dz = g.dz, *const dweight = g.dweight;
  Sums sums;
  for (int64_t begin = 0; begin < g.width; begin += kSumBlock) {
    const int64_t end = std::min(g.width, begin + kSumBlock);
    float squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
    for (int64_t i = begin; i < end; ++i) {
      const float sigmoid = fast_sigmoid(z[i]);
      dz[i] = sigmoid;
      squares += x[i] * x[i];
      dot += weight[i] * dy[i] * (z[i] * sigmoid) * x[i];
    }
    sums.squares += squares, sums.dot += dot;
  }
  const Scales scales = scales_of(sums, g);
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) {
    const float sigmoid = dz[i], silu = z[i] * sigmoid;
    const float n = x[i] * scales.rstd;
    const float gradient = weight[i] * dy[i];
    dweight[i] += dy[i] * n * silu;
    dz[i] = gradient * n * silu_slope(z[i], sigmoid);
    dx[i] = scales.rstd * (gradient * silu - n * scales.mean);
  }
}

}  // namespace

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void gated_norm_forward_simd(const GatedNormForwardGroup<float>& group) {
  group.gate == GateOrder::before ? gate_then_norm(group) : norm_then_gate(group);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void gated_norm_backward_simd(const GatedNormBackwardGroup<float>& group) {
  group.gate == GateOrder::before ? gate_then_norm_backward(group) : norm_then_gate_backward(group);
}

}  // namespace sluice::cpu
