// What happens to a tile of scores (queries by keys) between the matrix products. In float these
// are vectorised for the processor at hand (attention_simd.cpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/core/fast_math.h"

namespace sluice::cpu {

constexpr int64_t kQueryTile = 64;
constexpr int64_t kKeyTile = 64;

// Row r of the tile sees its columns [begin[r], end[r]), maybe none.
struct AttentionTile {
  int64_t rows = 0;
  int64_t columns = 0;  // also from one row to the next
  int64_t begin[kQueryTile] = {};
  int64_t end[kQueryTile] = {};
};

// The softmax so far of each row of a tile.
template <class T>
struct OnlineSoftmax {
  T largest[kQueryTile] = {};  // of the scores
  T sum[kQueryTile] = {};      // of exp(score - largest)
  T rescale[kQueryTile] = {};  // what earlier sums must be multiplied by
};

// scores becomes exp(score - largest), 0 where a row does not see.
void softmax_tile(const AttentionTile& tile, float* scores, OnlineSoftmax<float>& softmax);
void softmax_tile(const AttentionTile& tile, double* scores, OnlineSoftmax<double>& softmax);

// scores becomes p = exp(score - lse), dp becomes ds = p (dp - dy_y); both 0 where a row does not
// see. lse and dy_y are those of the tile's rows.
void gradient_tile(const AttentionTile& tile, const float* lse, const float* dy_y, float* scores,
                   float* dp);
void gradient_tile(const AttentionTile& tile, const double* lse, const double* dy_y, double* scores,
                   double* dp);

namespace detail {

template <class T>
[[gnu::always_inline]] inline void softmax_tile(const AttentionTile& tile, T* scores,
                                                OnlineSoftmax<T>& softmax) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* const score = scores + r * tile.columns;
    const int64_t begin = tile.begin[r], end = tile.end[r];
    T largest = softmax.largest[r];
#pragma omp simd reduction(max : largest)
    for (int64_t s = begin; s < end; ++s) largest = score[s] > largest ? score[s] : largest;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t s = begin; s < end; ++s) {
      score[s] = fast_exp(score[s] - largest);
      sum += score[s];
    }
    for (int64_t s = 0; s < begin; ++s) score[s] = 0;
    for (int64_t s = end; s < tile.columns; ++s) score[s] = 0;
    softmax.rescale[r] = fast_exp(softmax.largest[r] - largest);
    softmax.sum[r] = softmax.sum[r] * softmax.rescale[r] + sum;
    softmax.largest[r] = largest;
  }
}

template <class T>
[[gnu::always_inline]] inline void gradient_tile(const AttentionTile& tile, const T* lse,
                                                 const T* dy_y, T* scores, T* dp) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* const p = scores + r * tile.columns;
    T* const ds = dp + r * tile.columns;
    const int64_t begin = tile.begin[r], end = tile.end[r];
    for (int64_t s = 0; s < begin; ++s) p[s] = ds[s] = 0;
#pragma omp simd
    for (int64_t s = begin; s < end; ++s) {
      p[s] = fast_exp(p[s] - lse[r]);
      ds[s] = p[s] * (ds[s] - dy_y[r]);
    }
    for (int64_t s = end; s < tile.columns; ++s) p[s] = ds[s] = 0;
  }
}

}  // namespace detail
}  // namespace sluice::cpu
