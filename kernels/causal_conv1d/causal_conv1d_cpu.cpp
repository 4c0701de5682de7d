#include "kernels/causal_conv1d/causal_conv1d_cpu.h"

#include <algorithm>
#include <cmath>

namespace sluice::cpu {

namespace {

template <class T>
T sigmoid(T v) {
  return T(1) / (T(1) + std::exp(-v));
}

// v[t, c] of the header; Args is the forward's or the backward's.
template <class T, class Args>
T convolve(const Args& args, int64_t b, int64_t t, int64_t c) {
  const int64_t K = args.weight.dim(1);
  const int64_t doc_begin = args.doc_begin.template row<int32_t>(b)[t];
  const T* const weight = args.weight.template row<T>(c);
  T v = args.bias ? args.bias.template as<T>()[c] : T(0);
  for (int64_t k = 0; k < K; ++k) {
    const T* const tap = conv_tap<T>(args.x, args.halo, b, t - K + 1 + k, doc_begin);
    if (tap != nullptr) v += weight[k] * tap[c];
  }
  return v;
}

// Where the gradient of tap `position` goes; the tap exists.
template <class T>
T* gradient_of_tap(const CausalConv1dBackward& args, int64_t b, int64_t position) {
  if (position >= 0) return args.dx.row<T>(b * args.dx.dim(1) + position);
  const int64_t width = args.dhalo.dim(1);
  return args.dhalo.row<T>(b * width + width + position);
}

// Everything of one channel, the tokens in order.
template <class T>
void backward_channel(const CausalConv1dBackward& args, int64_t c) {
  const int64_t B = args.x.dim(0), tokens = args.x.dim(1), K = args.weight.dim(1);
  const T* const weight = args.weight.row<T>(c);
  T* const dweight = args.dweight.row<T>(c);
  for (int64_t row = 0; row < B * tokens; ++row) args.dx.row<T>(row)[c] = 0;
  for (int64_t row = 0; args.dhalo && row < B * (K - 1); ++row) args.dhalo.row<T>(row)[c] = 0;
  for (int64_t row = 0; row < B * tokens; ++row) {
    const int64_t b = row / tokens, t = row % tokens;
    const int64_t doc_begin = args.doc_begin.row<int32_t>(b)[t];
    T dv = args.dy.row<T>(row)[c];
    if (args.silu) {
      const T v = convolve<T>(args, b, t, c);
      dv *= sigmoid(v) * (1 + v * (1 - sigmoid(v)));
    }
    if (args.dbias) args.dbias.as<T>()[c] += dv;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t position = t - K + 1 + k;
      const T* const tap = conv_tap<T>(args.x, args.halo, b, position, doc_begin);
      if (tap == nullptr) continue;
      dweight[k] += dv * tap[c];
      gradient_of_tap<T>(args, b, position)[c] += dv * weight[k];
    }
  }
}

}  // namespace

template <class T>
void causal_conv1d_forward(const CausalConv1dForward& args) {
  const int64_t tokens = args.x.dim(1), C = args.x.dim(2);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < args.x.rows(); ++row) {
    T* const y = args.y.row<T>(row);
    for (int64_t c = 0; c < C; ++c) {
      const T v = convolve<T>(args, row / tokens, row % tokens, c);
      y[c] = args.silu ? v * sigmoid(v) : v;
    }
  }
}

template <class T>
void causal_conv1d_backward(const CausalConv1dBackward& args) {
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < args.x.dim(2); ++c) backward_channel<T>(args, c);
}

template <class T>
void causal_conv1d_step(const CausalConv1dStep& args) {
  const int64_t B = args.x.dim(0), C = args.x.dim(1), K = args.weight.dim(1);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t c = 0; c < C; ++c) {
      const T* const weight = args.weight.row<T>(c);
      const T x = args.x.row<T>(b)[c];
      T v = args.bias ? args.bias.as<T>()[c] : T(0);
      for (int64_t k = 0; k + 1 < K; ++k) {
        T* const tail = args.tail.row<T>(b * (K - 1) + k) + c;
        v += weight[k] * *tail;
        *tail = k + 2 < K ? args.tail.row<T>(b * (K - 1) + k + 1)[c] : x;
      }
      v += weight[K - 1] * x;
      args.y.row<T>(b)[c] = args.silu ? v * sigmoid(v) : v;
    }
  }
}

template void causal_conv1d_forward<float>(const CausalConv1dForward&);
template void causal_conv1d_forward<double>(const CausalConv1dForward&);
template void causal_conv1d_backward<float>(const CausalConv1dBackward&);
template void causal_conv1d_backward<double>(const CausalConv1dBackward&);
template void causal_conv1d_step<float>(const CausalConv1dStep&);
template void causal_conv1d_step<double>(const CausalConv1dStep&);

}  // namespace sluice::cpu
