#include "kernels/rms_norm/rms_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/row_blocks.h"

namespace sluice::cpu {

template <class T>
void rms_norm_forward(const RmsNormForward& args) {
  const int64_t rows = args.x.rows();
  const int64_t D = args.x.row_size();
  const T* const weight = args.weight ? args.weight.as<T>() : nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T* sum = args.x.row<T>(row);
    if (args.delta) {
      const T* const x = sum;
      const T* const delta = args.delta.row<T>(row);
      T* const written = args.sum.row<T>(row);
      for (int64_t i = 0; i < D; ++i) written[i] = x[i] + delta[i];
      sum = written;
    }
    double square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < D; ++i) square += double(sum[i]) * sum[i];
    const T rstd = T(1 / std::sqrt(square / D + args.eps));
    if (args.rstd) args.rstd.as<T>()[row] = rstd;
    T* const y = args.y.row<T>(row);
    if (weight != nullptr) {
      for (int64_t i = 0; i < D; ++i) y[i] = weight[i] * (sum[i] * rstd);
    } else {
      for (int64_t i = 0; i < D; ++i) y[i] = sum[i] * rstd;
    }
  }
}

template <class T>
void rms_norm_backward(const RmsNormBackward& args, TensorView partial_dweight) {
  const RowBlocks blocks(args.dy.rows());
  const int64_t D = args.dy.row_size();
  const T* const weight = args.weight ? args.weight.as<T>() : nullptr;
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks.count; ++block) {
    T* const partial = partial_dweight.row<T>(block);
    std::fill_n(partial, D, T(0));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* const dy = args.dy.row<T>(row);
      const T* const sum = args.sum.row<T>(row);
      const T* const dsum = args.dsum ? args.dsum.row<T>(row) : nullptr;
      T* const dx = args.dx.row<T>(row);
      const T rstd = args.rstd.as<T>()[row];
      double dot = 0;  // sum of g_i n_i
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < D; ++i) {
        dot += double(weight != nullptr ? weight[i] * dy[i] : dy[i]) * (sum[i] * rstd);
      }
      const T mean = T(dot / D);
      for (int64_t i = 0; i < D; ++i) {
        const T n = sum[i] * rstd;
        const T g = weight != nullptr ? weight[i] * dy[i] : dy[i];
        partial[i] += dy[i] * n;
        dx[i] = rstd * (g - n * mean) + (dsum != nullptr ? dsum[i] : T(0));
      }
    }
  }
  if (weight == nullptr) return;
  T* const dweight = args.dweight.as<T>();
  for (int64_t block = 0; block < blocks.count; ++block) {
    const T* const partial = partial_dweight.row<T>(block);
    for (int64_t i = 0; i < D; ++i) dweight[i] += partial[i];
  }
}

template void rms_norm_forward<float>(const RmsNormForward&);
template void rms_norm_forward<double>(const RmsNormForward&);
template void rms_norm_backward<float>(const RmsNormBackward&, TensorView);
template void rms_norm_backward<double>(const RmsNormBackward&, TensorView);

}  // namespace sluice::cpu
