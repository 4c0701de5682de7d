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

// rstd, and what the second pass takes n by: mean(g n).
struct Scales {
  float rstd = 0;
  float mean = 0;
};

// The first pass of a backward. dz holds sigmoid(z) from here to the second pass.
template <GateOrder kGate>
[[gnu::always_inline]] inline Scales backward_scales(const Backward& g) {
  const float *const dy = g.dy, *const x = g.x, *const z = g.z, *const weight = g.weight;
  float* const dz = g.dz;
  constexpr bool kGateFirst = kGate == GateOrder::before;
  double squares = 0, dot = 0;
  for (int64_t begin = 0; begin < g.width; begin += kSumBlock) {
    const int64_t end = std::min(g.width, begin + kSumBlock);
    float block_squares = 0, block_dot = 0;
#pragma omp simd reduction(+ : block_squares, block_dot)
    for (int64_t i = begin; i < end; ++i) {
      const float sigmoid = fast_sigmoid(z[i]), silu = z[i] * sigmoid;
      const float normed = kGateFirst ? x[i] * silu : x[i];
      const float gradient = kGateFirst ? weight[i] * dy[i] : weight[i] * dy[i] * silu;
      dz[i] = sigmoid;
      block_squares += normed * normed;
      block_dot += gradient * normed;
    }
    squares += block_squares, dot += block_dot;
  }
  const double rstd = inverse_root(squares, g.width, g.eps);
  return {.rstd = float(rstd), .mean = float(dot * rstd / double(g.width))};
}

[[gnu::always_inline]] inline void gate_then_norm_backward(const Backward& g) {
  const float *const dy = g.dy, *const x = g.x, *const z = g.z, *const weight = g.weight;
  float *const dx = g.dx, *const dz = g.dz, *const dweight = g.dweight;
  const Scales scales = backward_scales<GateOrder::before>(g);
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
  const Scales scales = backward_scales<GateOrder::after>(g);
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
