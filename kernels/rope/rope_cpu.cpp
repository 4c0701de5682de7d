// B batch, T tokens, R rotary dims
#include "kernels/rope/rope_cpu.h"

#include <cmath>
#include <vector>

namespace sluice::cpu {

template <class T>
void rope(const Rope& args, int direction) {
  const int64_t B = args.x.dim(0), tokens = args.x.dim(1), heads = args.x.dim(2);
  const int64_t head_dim = args.x.dim(3), half = args.rotary_dims / 2;
  std::vector<double> frequency(half);
  for (int64_t i = 0; i < half; ++i) frequency[i] = std::pow(args.theta, -double(i) / half);
  const double* const frequencies = frequency.data();
#pragma omp parallel
  {
    std::vector<T> cosine(half), sine(half);  // one token's, for all of its heads
#pragma omp for schedule(static)
    for (int64_t row = 0; row < B * tokens; ++row) {
      const int32_t position = args.positions.row<int32_t>(row / tokens)[row % tokens];
      for (int64_t i = 0; i < half; ++i) {
        cosine[i] = T(std::cos(position * frequencies[i]));
        sine[i] = T(direction * std::sin(position * frequencies[i]));
      }
      for (int64_t head = 0; head < heads; ++head) {
        T* const a = args.x.row<T>(row) + head * head_dim;
        T* const b = a + half;
        for (int64_t i = 0; i < half; ++i) {
          const T before = a[i];
          a[i] = before * cosine[i] - b[i] * sine[i];
          b[i] = b[i] * cosine[i] + before * sine[i];
        }
      }
    }
  }
}

template void rope<float>(const Rope&, int);
template void rope<double>(const Rope&, int);

}  // namespace sluice::cpu
