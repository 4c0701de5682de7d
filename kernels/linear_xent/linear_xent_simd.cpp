// A row of cross-entropy in float: the reference's three passes as loops that vectorise, once per
// instruction set.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/fast_math.h"
#include "kernels/linear_xent/linear_xent_cpu.h"

namespace sluice::cpu {
namespace {

// Exponentials are summed in float lanes over this many, then in double.
constexpr int64_t kSumBlock = 1024;

}  // namespace

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
double
xent_row_simd(const XentRow& row, float* logits) {
  const int64_t V = row.V;
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t v = 0; v < V; ++v) largest = logits[v] > largest ? logits[v] : largest;
  const double target_logit = double(logits[row.target]) - double(largest);

  double sum = 0;
  for (int64_t begin = 0; begin < V; begin += kSumBlock) {
    const int64_t end = std::min(V, begin + kSumBlock);
    float block_sum = 0;
    if (row.with_gradient) {
#pragma omp simd reduction(+ : block_sum)
      for (int64_t v = begin; v < end; ++v) {
        logits[v] = fast_exp(logits[v] - largest);
        block_sum += logits[v];
      }
    } else {
#pragma omp simd reduction(+ : block_sum)
      for (int64_t v = begin; v < end; ++v) block_sum += fast_exp(logits[v] - largest);
    }
    sum += block_sum;
  }
  if (row.with_gradient) {
    const float factor = float(row.scale / sum);
#pragma omp simd
    for (int64_t v = 0; v < V; ++v) logits[v] *= factor;
    logits[row.target] -= float(row.scale);
  }
  return std::log(sum) - target_logit;
}

}  // namespace sluice::cpu
