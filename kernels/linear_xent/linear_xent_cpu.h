// The CPU side of linear_xent, as its dispatcher sees it: what happens between the matrix products.
#pragma once

#include "kernels/linear_xent/linear_xent.h"
#include "kernels/linear_xent/linear_xent_chunk.h"

namespace sluice::cpu {

template <class T>
void xent_chunk(const XentChunk& chunk);

// In token order.
template <class T>
double xent_loss_sum(const ConstTensorView& losses);

// One row of logits. Returns logsumexp(logits) - logits[target]; with_gradient: replaces the logits
// by scale * (softmax(logits) - onehot(target)). NaN or +infinity among the logits gives NaN.
struct XentRow {
  int64_t V = 0;
  int64_t target = 0;
  bool with_gradient = false;
  double scale = 0;
};
// In float, vectorised for the processor at hand.
double xent_row_simd(const XentRow& row, float* logits);

}  // namespace sluice::cpu
