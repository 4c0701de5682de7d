#include "kernels/grad_norm/grad_norm_cpu.h"

#include <algorithm>

namespace sluice::cpu {

template <class T>
void squared_norm(const SquaredNorm& args, TensorView partial) {
  const int64_t n = args.x.numel();
  const int64_t blocks = partial.numel();
  const T* const x = args.x.as<T>();
  double* const sums = partial.as<double>();
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = std::min(n, (block + 1) * kNormBlock);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = block * kNormBlock; i < end; ++i) sum += double(x[i]) * double(x[i]);
    sums[block] = sum;
  }
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block];
  args.sum.as<double>()[0] = total;
}

template void squared_norm<float>(const SquaredNorm&, TensorView);
template void squared_norm<double>(const SquaredNorm&, TensorView);

}  // namespace sluice::cpu
