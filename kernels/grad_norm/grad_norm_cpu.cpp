#include "kernels/grad_norm/grad_norm_cpu.h"

#include <algorithm>
#include <cmath>

namespace sluice::cpu {

template <class T>
void block_squares(const BlockSquares& args) {
  const int64_t n = args.x.numel();
  const int64_t blocks = args.sums.numel();
  const T* const x = args.x.as<T>();
  double* const sums = args.sums.as<double>();
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = std::min(n, (block + 1) * kNormBlock);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = block * kNormBlock; i < end; ++i) sum += double(x[i]) * double(x[i]);
    sums[block] = sum;
  }
}

void ordered_sum(const OrderedSum& args) {
  const double* const values = args.values.as<double>();
  const int64_t* const places = args.places.as<int64_t>();
  double sum = 0;
  for (int64_t i = 0; i < args.places.numel(); ++i) sum += values[places[i]];
  *args.sum.as<double>() = sum;
}

void clip_gradient(const ClipGradient& args) {
  double squared = 0;
  for (int64_t i = 0; i < args.squares.numel(); ++i) squared += args.squares.as<double>()[i];
  const double norm = std::sqrt(squared);
  const bool clips = args.clip > 0 && norm > args.clip;
  *args.norm.as<double>() = norm;
  *args.grad_scale.as<double>() = clips ? args.clip / norm : 1;
  *args.apply.as<double>() = std::isfinite(norm) && std::isfinite(*args.loss.as<double>()) ? 1 : 0;
}

template void block_squares<float>(const BlockSquares&);
template void block_squares<double>(const BlockSquares&);

}  // namespace sluice::cpu
