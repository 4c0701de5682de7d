// The formulas once, as loops over one group of one row. In float they are compiled for several
// instruction sets, with the polynomial exp; in double they are the reference.
#include "kernels/gated_rms_norm/gated_rms_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/fast_math.h"
#include "kernels/core/row_blocks.h"

namespace sluice::cpu {

namespace {

template <class T>
struct ForwardGroup {
  const T* x = nullptr;
  const T* z = nullptr;
  const T* weight = nullptr;
  T* y = nullptr;
  int64_t width = 0;
  double eps = 0;
};

template <class T>
[[gnu::always_inline]] inline void gate_then_norm(const ForwardGroup<T>& g) {
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < g.width; ++i) {
    const T h = g.x[i] * fast_silu(g.z[i]);
    g.y[i] = h;
    square += double(h) * h;
  }
  const T rstd = T(1 / std::sqrt(square / g.width + g.eps));
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) g.y[i] = g.weight[i] * (g.y[i] * rstd);
}

template <class T>
[[gnu::always_inline]] inline void norm_then_gate(const ForwardGroup<T>& g) {
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < g.width; ++i) square += double(g.x[i]) * g.x[i];
  const T rstd = T(1 / std::sqrt(square / g.width + g.eps));
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) {
    g.y[i] = g.weight[i] * (g.x[i] * rstd) * fast_silu(g.z[i]);
  }
}

template <class T>
struct BackwardGroup {
  const T* dy = nullptr;
  const T* x = nullptr;
  const T* z = nullptr;
  const T* weight = nullptr;
  T* dx = nullptr;
  T* dz = nullptr;  // holds sigmoid(z) between the two passes
  T* dweight = nullptr;
  int64_t width = 0;
  double eps = 0;
};

template <class T>
[[gnu::always_inline]] inline void gate_then_norm_backward(const BackwardGroup<T>& g) {
  double square = 0, dot = 0;  // of h, and of weight * dy with h
#pragma omp simd reduction(+ : square, dot)
  for (int64_t i = 0; i < g.width; ++i) {
    const T sigmoid = fast_sigmoid(g.z[i]);
    const T h = g.x[i] * (g.z[i] * sigmoid);
    g.dz[i] = sigmoid;
    square += double(h) * h;
    dot += double(g.weight[i] * g.dy[i]) * h;
  }
  const double rstd64 = 1 / std::sqrt(square / g.width + g.eps);
  const T rstd = T(rstd64), mean = T(dot * rstd64 / g.width);
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) {
    const T dy = g.dy[i], x = g.x[i], z = g.z[i], sigmoid = g.dz[i];
    const T silu = z * sigmoid;
    const T n = x * silu * rstd;
    const T dh = rstd * (g.weight[i] * dy - n * mean);
    g.dweight[i] += dy * n;
    g.dx[i] = dh * silu;
    g.dz[i] = dh * x * silu_slope(z, sigmoid);
  }
}

template <class T>
[[gnu::always_inline]] inline void norm_then_gate_backward(const BackwardGroup<T>& g) {
  double square = 0, dot = 0;  // of x, and of weight * dy * silu with x
#pragma omp simd reduction(+ : square, dot)
  for (int64_t i = 0; i < g.width; ++i) {
    const T sigmoid = fast_sigmoid(g.z[i]);
    g.dz[i] = sigmoid;
    square += double(g.x[i]) * g.x[i];
    dot += double(g.weight[i] * g.dy[i] * (g.z[i] * sigmoid)) * g.x[i];
  }
  const double rstd64 = 1 / std::sqrt(square / g.width + g.eps);
  const T rstd = T(rstd64), mean = T(dot * rstd64 / g.width);
#pragma omp simd
  for (int64_t i = 0; i < g.width; ++i) {
    const T dy = g.dy[i], z = g.z[i], sigmoid = g.dz[i];
    const T silu = z * sigmoid;
    const T n = g.x[i] * rstd;
    g.dweight[i] += dy * n * silu;
    g.dx[i] = rstd * (g.weight[i] * dy * silu - n * mean);
    g.dz[i] = g.weight[i] * dy * n * silu_slope(z, sigmoid);
  }
}

// (Under GCC 12's ThreadSanitizer the resolver of clones crashes.)
#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void forward_group(const ForwardGroup<float>& group, GateOrder order) {
  order == GateOrder::before ? gate_then_norm(group) : norm_then_gate(group);
}
void forward_group(const ForwardGroup<double>& group, GateOrder order) {
  order == GateOrder::before ? gate_then_norm(group) : norm_then_gate(group);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void backward_group(const BackwardGroup<float>& group, GateOrder order) {
  order == GateOrder::before ? gate_then_norm_backward(group) : norm_then_gate_backward(group);
}
void backward_group(const BackwardGroup<double>& group, GateOrder order) {
  order == GateOrder::before ? gate_then_norm_backward(group) : norm_then_gate_backward(group);
}

}  // namespace

template <class T>
void gated_rms_norm_forward(const GatedRmsNormForward& args) {
  const int64_t rows = args.x.rows(), width = args.x.row_size() / args.groups;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < args.x.row_size(); first += width) {
      forward_group(ForwardGroup<T>{.x = args.x.row<T>(row) + first,
                                    .z = args.z.row<T>(row) + first,
                                    .weight = args.weight.as<T>() + first,
                                    .y = args.y.row<T>(row) + first,
                                    .width = width,
                                    .eps = args.eps},
                    args.gate);
    }
  }
}

template <class T>
void gated_rms_norm_backward(const GatedRmsNormBackward& args, TensorView partial_dweight) {
  const RowBlocks blocks(args.x.rows());
  const int64_t E = args.x.row_size(), width = E / args.groups;
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks.count; ++block) {
    T* const partial = partial_dweight.row<T>(block);
    std::fill_n(partial, E, T(0));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      for (int64_t first = 0; first < E; first += width) {
        backward_group(BackwardGroup<T>{.dy = args.dy.row<T>(row) + first,
                                        .x = args.x.row<T>(row) + first,
                                        .z = args.z.row<T>(row) + first,
                                        .weight = args.weight.as<T>() + first,
                                        .dx = args.dx.row<T>(row) + first,
                                        .dz = args.dz.row<T>(row) + first,
                                        .dweight = partial + first,
                                        .width = width,
                                        .eps = args.eps},
                       args.gate);
      }
    }
  }
  T* const dweight = args.dweight.as<T>();
  for (int64_t block = 0; block < blocks.count; ++block) {
    const T* const partial = partial_dweight.row<T>(block);
    for (int64_t i = 0; i < E; ++i) dweight[i] += partial[i];
  }
}

template void gated_rms_norm_forward<float>(const GatedRmsNormForward&);
template void gated_rms_norm_forward<double>(const GatedRmsNormForward&);
template void gated_rms_norm_backward<float>(const GatedRmsNormBackward&, TensorView);
template void gated_rms_norm_backward<double>(const GatedRmsNormBackward&, TensorView);

}  // namespace sluice::cpu
