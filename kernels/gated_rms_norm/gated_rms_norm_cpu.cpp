#include "kernels/gated_rms_norm/gated_rms_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/row_blocks.h"

namespace sluice::cpu {

namespace {

template <class T>
T sigmoid(T z) {
  return 1 / (1 + std::exp(-z));
}

// before: h = x silu(z) is normalised; after: h = x is, and then gated.
template <class T>
void forward_group(const GatedNormForwardGroup<T>& g) {
  const bool before = g.gate == GateOrder::before;
  T squares = 0;
  for (int64_t i = 0; i < g.width; ++i) {
    const T h = before ? g.x[i] * g.z[i] * sigmoid(g.z[i]) : g.x[i];
    squares += h * h;
  }
  const T rstd = 1 / std::sqrt(squares / T(g.width) + T(g.eps));
  for (int64_t i = 0; i < g.width; ++i) {
    g.y[i] = g.weight[i] * g.x[i] * rstd * g.z[i] * sigmoid(g.z[i]);
  }
}
void forward_group(const GatedNormForwardGroup<float>& group) { gated_norm_forward_simd(group); }

template <class T>
void backward_group(const GatedNormBackwardGroup<T>& g) {
  const bool before = g.gate == GateOrder::before;
  T squares = 0, dot = 0;  // of h, and of the gradient of n with h
  for (int64_t i = 0; i < g.width; ++i) {
    const T silu = g.z[i] * sigmoid(g.z[i]);
    const T h = before ? g.x[i] * silu : g.x[i];
    const T dn = g.weight[i] * g.dy[i] * (before ? T(1) : silu);
    squares += h * h;
    dot += dn * h;
  }
  const T rstd = 1 / std::sqrt(squares / T(g.width) + T(g.eps));
  const T mean = dot * rstd / T(g.width);
  for (int64_t i = 0; i < g.width; ++i) {
    const T s = sigmoid(g.z[i]), silu = g.z[i] * s;
    const T slope = s * (1 + g.z[i] * (1 - s));
    const T dy = g.dy[i], x = g.x[i], weighted = g.weight[i] * dy;
    if (before) {
      const T n = x * silu * rstd;
      const T dh = rstd * (weighted - n * mean);
      g.dweight[i] += dy * n;
      g.dz[i] = dh * x * slope;
      g.dx[i] = dh * silu;
    } else {
      const T n = x * rstd;
      g.dweight[i] += dy * n * silu;
      g.dz[i] = weighted * n * slope;
      g.dx[i] = rstd * (weighted * silu - n * mean);
    }
  }
}
void backward_group(const GatedNormBackwardGroup<float>& group) { gated_norm_backward_simd(group); }

}  // namespace

template <class T>
void gated_rms_norm_forward(const GatedRmsNormForward& args) {
  const int64_t rows = args.x.rows(), width = args.x.row_size() / args.groups;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < args.x.row_size(); first += width) {
      forward_group(GatedNormForwardGroup<T>{.x = args.x.row<T>(row) + first,
                                             .z = args.z.row<T>(row) + first,
                                             .weight = args.weight.as<T>() + first,
                                             .y = args.y.row<T>(row) + first,
                                             .width = width,
                                             .gate = args.gate,
                                             .eps = args.eps});
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
        backward_group(GatedNormBackwardGroup<T>{.dy = args.dy.row<T>(row) + first,
                                                 .x = args.x.row<T>(row) + first,
                                                 .z = args.z.row<T>(row) + first,
                                                 .weight = args.weight.as<T>() + first,
                                                 .dx = args.dx.row<T>(row) + first,
                                                 .dz = args.dz.row<T>(row) + first,
                                                 .dweight = partial + first,
                                                 .width = width,
                                                 .gate = args.gate,
                                                 .eps = args.eps});
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
