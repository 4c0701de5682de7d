// B batch, H heads, P head dim, G groups, N state dim
#include "kernels/ssd_step/ssd_step_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/fast_math.h"

namespace sluice::cpu {

template <class T>
void ssd_step(const SsdStep& args) {
  const int64_t batch = args.x.dim(0), H = args.x.dim(1), P = args.x.dim(2);
  const int64_t G = args.B.dim(1), N = args.B.dim(2);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < batch * H; ++row) {
    const int64_t b = row / H, h = row % H, g = h * G / H;
    const T* const x = args.x.row<T>(row);
    const T* const B = args.B.row<T>(b * G + g);
    const T* const C = args.C.row<T>(b * G + g);
    T* const y = args.y.row<T>(row);
    const double raw = double(args.dt_raw.row<T>(b)[h]) + args.dt_bias.as<T>()[h];
    const double dt = std::min(std::max(fast_softplus(raw), args.dt_min), args.dt_max);
    const T decay = T(std::exp(-dt * std::exp(double(args.A_log.as<T>()[h]))));
    for (int64_t p = 0; p < P; ++p) {
      T* const state = args.state.row<T>(row) + p * N;
      const T entering = T(dt) * x[p];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t n = 0; n < N; ++n) {
        state[n] = decay * state[n] + entering * B[n];
        sum += state[n] * C[n];
      }
      y[p] = sum + args.D.as<T>()[h] * x[p];
    }
  }
}

template void ssd_step<float>(const SsdStep&);
template void ssd_step<double>(const SsdStep&);

}  // namespace sluice::cpu
