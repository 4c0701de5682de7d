#include "kernels/activation/activation_cpu.h"

#include <cmath>
#include <numbers>
#include <type_traits>

namespace sluice::cpu {
namespace {

template <class T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

// NaN stays NaN, which std::max would not promise.
template <class T>
T relu(T x) {
  return x < 0 ? T(0) : x;
}

// The normal distribution's function and density. erfc keeps the left tail's digits.
template <class T>
T normal_cdf(T x) {
  return T(0.5) * std::erfc(-x / std::numbers::sqrt2_v<T>);
}
template <class T>
T normal_pdf(T x) {
  return std::exp(T(-0.5) * x * x) * std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>;
}

template <class T>
void forward_row(Activation kind, int64_t F, const T* x, const T* up, T* y) {
  switch (kind) {
    case Activation::swiglu:
      for (int64_t i = 0; i < F; ++i) y[i] = x[i] * sigmoid(x[i]) * up[i];
      return;
    case Activation::relu2:
      for (int64_t i = 0; i < F; ++i) y[i] = relu(x[i]) * relu(x[i]);
      return;
    case Activation::gelu:
      for (int64_t i = 0; i < F; ++i) y[i] = x[i] * normal_cdf(x[i]);
      return;
  }
}

// dx may be dy or x, dup may be up: an element is read whole before it is written.
template <class T>
void backward_row(const ActivationBackward& args, int64_t row) {
  const int64_t F = args.dy.row_size();
  const T* const dy = args.dy.row<T>(row);
  const T* const x = args.x.row<T>(row);
  T* const dx = args.dx.row<T>(row);
  switch (args.kind) {
    case Activation::swiglu: {
      const T* const up = args.up.row<T>(row);
      T* const dup = args.dup.row<T>(row);
      for (int64_t i = 0; i < F; ++i) {
        const T s = sigmoid(x[i]);
        const T gate_share = dy[i] * up[i] * s * (1 + x[i] * (1 - s));
        dup[i] = dy[i] * x[i] * s;
        dx[i] = gate_share;
      }
      return;
    }
    case Activation::relu2:
      for (int64_t i = 0; i < F; ++i) dx[i] = dy[i] * 2 * relu(x[i]);
      return;
    case Activation::gelu:
      for (int64_t i = 0; i < F; ++i) dx[i] = dy[i] * (normal_cdf(x[i]) + x[i] * normal_pdf(x[i]));
      return;
  }
}

// The rows of a tensor that is given for swiglu alone.
template <class T, class View>
auto optional_row(const View& view, int64_t row) {
  return view ? view.template row<T>(row) : nullptr;
}

}  // namespace

template <class T>
void activation_forward(const ActivationForward& args) {
  const int64_t rows = args.x.rows(), F = args.x.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T* const x = args.x.row<T>(row);
    const T* const up = optional_row<T>(args.up, row);
    T* const y = args.y.row<T>(row);
    if constexpr (std::is_same_v<T, float>) {
      activation_forward_simd({.kind = args.kind, .F = F, .x = x, .up = up, .y = y});
    } else {
      forward_row(args.kind, F, x, up, y);
    }
  }
}

template <class T>
void activation_backward(const ActivationBackward& args) {
  const int64_t rows = args.dy.rows();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    if constexpr (std::is_same_v<T, float>) {
      activation_backward_simd({.kind = args.kind,
                                .F = args.dy.row_size(),
                                .dy = args.dy.row<float>(row),
                                .x = args.x.row<float>(row),
                                .up = optional_row<float>(args.up, row),
                                .dx = args.dx.row<float>(row),
                                .dup = optional_row<float>(args.dup, row)});
    } else {
      backward_row<T>(args, row);
    }
  }
}

template void activation_forward<float>(const ActivationForward&);
template void activation_forward<double>(const ActivationForward&);
template void activation_backward<float>(const ActivationBackward&);
template void activation_backward<double>(const ActivationBackward&);

}  // namespace sluice::cpu
