// What chunk_scan does to the tiles of one head between the matrix products. In float these are
// vectorised for the processor at hand (chunk_scan_simd.cpp). Tokens count from the chunk's first.
#pragma once

#include <cstdint>

#include "kernels/core/fast_math.h"

namespace sluice::cpu {

// One head of a chunk of `tokens` tokens; Q x Q tiles have `tokens` columns.
template <class T>
struct ScanTile {
  int64_t tokens = 0;
  const int64_t* first = nullptr;  // the first token that t sees (its document's, or 0)
  const T* dt = nullptr;
  const T* cum = nullptr;
  T* row = nullptr;  // (tokens) of working memory, for weigh_gradients
};

// weights[t,s] = scores[t,s] exp(cum[t] - cum[s]) dt[s] where t sees s, else 0.
void weigh_scores(const ScanTile<float>& tile, const float* scores, float* weights);
void weigh_scores(const ScanTile<double>& tile, const double* scores, double* weights);

// From dy_x[t,s] = dy[t] . x[s], which becomes the weights of weigh_scores:
//   dscores += its gradient;   ddt[s] = ..., and dcum, all from pairs of the chunk
void weigh_gradients(const ScanTile<float>& tile, const float* scores, float* dy_x, float* dscores,
                     float* ddt, float* dcum);
void weigh_gradients(const ScanTile<double>& tile, const double* scores, double* dy_x,
                     double* dscores, double* ddt, double* dcum);

// A matrix whose rows lie `stride` elements apart.
template <class T>
struct Strided {
  T* data = nullptr;
  int64_t stride = 0;
  T* row(int64_t index) const { return data + index * stride; }
};

// y[t] = entering[t] y[t] + D x[t]
void scale_and_skip(int64_t tokens, int64_t width, const float* entering, float D,
                    Strided<const float> x, Strided<float> y);
void scale_and_skip(int64_t tokens, int64_t width, const double* entering, double D,
                    Strided<const double> x, Strided<double> y);

// dx[t] += D dy[t];   entering_dy[t] = entering[t] dy[t];   returns sum_t dy[t] . x[t]
double skip_gradients(int64_t tokens, int64_t width, const float* entering, float D,
                      Strided<const float> x, Strided<const float> dy, Strided<float> dx,
                      float* entering_dy);
double skip_gradients(int64_t tokens, int64_t width, const double* entering, double D,
                      Strided<const double> x, Strided<const double> dy, Strided<double> dx,
                      double* entering_dy);

// dC[t] += v[t];   dcum[t] += v[t] . C[t]
void entering_gradients(int64_t tokens, int64_t width, const float* v, Strided<const float> C,
                        Strided<float> dC, float* dcum);
void entering_gradients(int64_t tokens, int64_t width, const double* v, Strided<const double> C,
                        Strided<double> dC, double* dcum);

namespace detail {

template <class T>
[[gnu::always_inline]] inline void weigh_scores(const ScanTile<T>& tile, const T* scores,
                                                T* weights) {
  const int64_t Q = tile.tokens;
  for (int64_t t = 0; t < Q; ++t) {
    const T* const score = scores + t * Q;
    T* const weight = weights + t * Q;
    const T cum = tile.cum[t];
    for (int64_t s = 0; s < tile.first[t]; ++s) weight[s] = 0;
#pragma omp simd
    for (int64_t s = tile.first[t]; s <= t; ++s) {
      weight[s] = score[s] * fast_exp(cum - tile.cum[s]) * tile.dt[s];
    }
    for (int64_t s = t + 1; s < Q; ++s) weight[s] = 0;
  }
}

// The diagonal stands apart: its decay is exp(0) and has no gradient, not even of rounding. The
// exponentials have a loop of their own, or GCC 12 does not vectorise them.
template <class T>
[[gnu::always_inline]] inline void weigh_gradients(const ScanTile<T>& tile, const T* scores,
                                                   T* dy_x, T* dscores, T* ddt, T* dcum) {
  const int64_t Q = tile.tokens;
  const T *const dt = tile.dt, *const cum = tile.cum;
  T* const decay = tile.row;
  for (int64_t t = 0; t < Q; ++t) ddt[t] = dcum[t] = 0;
  for (int64_t t = 0; t < Q; ++t) {
    const T* const score = scores + t * Q;
    T* const dy_x_t = dy_x + t * Q;
    T* const dscore = dscores + t * Q;
    const T cum_t = cum[t];
    T from_t = 0;
    for (int64_t s = 0; s < tile.first[t]; ++s) dy_x_t[s] = 0;
#pragma omp simd
    for (int64_t s = tile.first[t]; s < t; ++s) decay[s] = fast_exp(cum_t - cum[s]);
#pragma omp simd reduction(+ : from_t)
    for (int64_t s = tile.first[t]; s < t; ++s) {
      const T weight = decay[s] * dt[s];
      const T share = score[s] * decay[s] * dy_x_t[s];
      dscore[s] += weight * dy_x_t[s];
      dy_x_t[s] = score[s] * weight;
      ddt[s] += share;
      dcum[s] -= share * dt[s];
      from_t += share * dt[s];
    }
    dcum[t] += from_t;
    ddt[t] += score[t] * dy_x_t[t];
    dscore[t] += dt[t] * dy_x_t[t];
    dy_x_t[t] = score[t] * dt[t];
    for (int64_t s = t + 1; s < Q; ++s) dy_x_t[s] = 0;
  }
}

template <class T>
[[gnu::always_inline]] inline void scale_and_skip(int64_t tokens, int64_t width, const T* entering,
                                                  T D, Strided<const T> x, Strided<T> y) {
  for (int64_t t = 0; t < tokens; ++t) {
    const T* const x_t = x.row(t);
    T* const y_t = y.row(t);
#pragma omp simd
    for (int64_t p = 0; p < width; ++p) y_t[p] = entering[t] * y_t[p] + D * x_t[p];
  }
}

template <class T>
[[gnu::always_inline]] inline double skip_gradients(int64_t tokens, int64_t width,
                                                    const T* entering, T D, Strided<const T> x,
                                                    Strided<const T> dy, Strided<T> dx,
                                                    T* entering_dy) {
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const T* const x_t = x.row(t);
    const T* const dy_t = dy.row(t);
    T* const dx_t = dx.row(t);
    T* const entering_t = entering_dy + t * width;
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t p = 0; p < width; ++p) {
      dx_t[p] += D * dy_t[p];
      entering_t[p] = entering[t] * dy_t[p];
      dot += dy_t[p] * x_t[p];
    }
    sum += dot;
  }
  return sum;
}

template <class T>
[[gnu::always_inline]] inline void entering_gradients(int64_t tokens, int64_t width, const T* v,
                                                      Strided<const T> C, Strided<T> dC, T* dcum) {
  for (int64_t t = 0; t < tokens; ++t) {
    const T* const v_t = v + t * width;
    const T* const C_t = C.row(t);
    T* const dC_t = dC.row(t);
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t n = 0; n < width; ++n) {
      dC_t[n] += v_t[n];
      dot += v_t[n] * C_t[n];
    }
    dcum[t] += dot;
  }
}

}  // namespace detail
}  // namespace sluice::cpu
