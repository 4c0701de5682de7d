// What chunk_state does to the tiles of one head between the matrix products. In float these are
// vectorised for the processor at hand (chunk_state_simd.cpp).
#pragma once

#include <cstdint>

namespace sluice::cpu {

// out[s] = weight[s] x[s]; out is packed, the rows of x lie x_stride apart.
void weigh_rows(int64_t tokens, int64_t width, const float* weight, const float* x,
                int64_t x_stride, float* out);
void weigh_rows(int64_t tokens, int64_t width, const double* weight, const double* x,
                int64_t x_stride, double* out);

// From v[s] = dstate B[s], packed:   dx[s] += weight[s] v[s];   dot[s] = v[s] . x[s]
void add_weighed_rows(int64_t tokens, int64_t width, const float* weight, const float* v,
                      const float* x, int64_t x_stride, float* dx, int64_t dx_stride, float* dot);
void add_weighed_rows(int64_t tokens, int64_t width, const double* weight, const double* v,
                      const double* x, int64_t x_stride, double* dx, int64_t dx_stride,
                      double* dot);

namespace detail {

template <class T>
[[gnu::always_inline]] inline void weigh_rows(int64_t tokens, int64_t width, const T* weight,
                                              const T* x, int64_t x_stride, T* out) {
  for (int64_t s = 0; s < tokens; ++s) {
    const T* const x_s = x + s * x_stride;
    T* const out_s = out + s * width;
#pragma omp simd
    for (int64_t p = 0; p < width; ++p) out_s[p] = weight[s] * x_s[p];
  }
}

template <class T>
[[gnu::always_inline]] inline void add_weighed_rows(int64_t tokens, int64_t width, const T* weight,
                                                    const T* v, const T* x, int64_t x_stride, T* dx,
                                                    int64_t dx_stride, T* dot) {
  for (int64_t s = 0; s < tokens; ++s) {
    const T* const v_s = v + s * width;
    const T* const x_s = x + s * x_stride;
    T* const dx_s = dx + s * dx_stride;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t p = 0; p < width; ++p) {
      dx_s[p] += weight[s] * v_s[p];
      sum += v_s[p] * x_s[p];
    }
    dot[s] = sum;
  }
}

}  // namespace detail
}  // namespace sluice::cpu
