#include "kernels/linear_xent/linear_xent_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace sluice::cpu {
namespace {

template <class T>
double xent_row(const XentRow& row, T* logits) {
  T largest = -std::numeric_limits<T>::infinity();
  for (int64_t v = 0; v < row.V; ++v) largest = std::max(largest, logits[v]);
  const double target_logit = double(logits[row.target]) - double(largest);
  double sum = 0;
  for (int64_t v = 0; v < row.V; ++v) {
    const T e = std::exp(logits[v] - largest);
    sum += e;
    if (row.with_gradient) logits[v] = e;
  }
  if (row.with_gradient) {
    const T factor = T(row.scale / sum);
    for (int64_t v = 0; v < row.V; ++v) logits[v] *= factor;
    logits[row.target] -= T(row.scale);
  }
  return std::log(sum) - target_logit;
}

}  // namespace

template <class T>
void xent_chunk(const XentChunk& chunk) {
  const double step_scale = chunk.step_scale ? *chunk.step_scale.as<double>() : 1.0;
  const double loss_scale = chunk.loss_scale * step_scale;
  const int64_t rows = chunk.logits.rows();
  const int64_t V = chunk.logits.row_size();
  const int64_t row_tokens = chunk.targets.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = (chunk.first + i) / row_tokens;
    const int64_t t = (chunk.first + i) % row_tokens;
    T* const logits = chunk.logits.row<T>(i);
    T& loss = chunk.losses.row<T>(b)[t];
    const int32_t target = chunk.targets.row<int32_t>(b)[t];
    if (target < 0) {
      loss = 0;
      if (chunk.with_gradient) std::fill_n(logits, V, T(0));
      continue;
    }
    const double weight = chunk.weights ? double(chunk.weights.row<T>(b)[t]) : 1.0;
    const XentRow row{.V = V,
                      .target = target,
                      .with_gradient = chunk.with_gradient,
                      .scale = loss_scale * weight};
    if constexpr (std::is_same_v<T, float>) {
      loss = float(weight * xent_row_simd(row, logits));
    } else {
      loss = weight * xent_row(row, logits);
    }
  }
}

template <class T>
double xent_loss_sum(const ConstTensorView& losses) {
  double sum = 0;
  for (int64_t b = 0; b < losses.rows(); ++b) {
    for (int64_t t = 0; t < losses.row_size(); ++t) sum += losses.row<T>(b)[t];
  }
  return sum;
}

template void xent_chunk<float>(const XentChunk&);
template void xent_chunk<double>(const XentChunk&);
template double xent_loss_sum<float>(const ConstTensorView&);
template double xent_loss_sum<double>(const ConstTensorView&);

}  // namespace sluice::cpu
