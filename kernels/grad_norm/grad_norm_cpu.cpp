#include "kernels/grad_norm/grad_norm_cpu.h"

#include <algorithm>

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

template void block_squares<float>(const BlockSquares&);
template void block_squares<double>(const BlockSquares&);

}  // namespace sluice::cpu
