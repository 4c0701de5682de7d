// Output head and cross-entropy in chunks of tokens: whole logits never exist.
//
//   logits[t] = hidden[t] weight^T;   loss[t] = weights[t] * (logsumexp(logits[t]) - logits[t,
//   targets[t]])
// Tokens whose target is -1 add nothing. loss_sum is the sum over tokens, in double, in token
// order. A target outside [-1, V) throws DataError.
//
// The backward needs the logits again, so forward and backward come as one pass too: the gradient
// of loss_scale * sum_t loss[t]:
//   dlogits = loss_scale * weights[t] * (softmax(logits) - onehot);  dhidden = dlogits weight;
//   dweight += dlogits^T hidden
#pragma once

#include "kernels/core/context.h"

namespace sluice {

inline constexpr int64_t kXentChunkBytes = int64_t{16} << 20;  // of logits at a time

struct LinearXentForward {
  ConstTensorView hidden = {};   // (B, T, D)
  ConstTensorView weight = {};   // (V, D)
  ConstTensorView targets = {};  // (B, T) i32, -1 = none
  ConstTensorView weights = {};  // (B, T) statistics, optional
  TensorView losses = {};        // (B, T) statistics
  TensorView loss_sum = {};      // (1) f64, overwritten
};
void linear_xent_forward(const Context& ctx, const LinearXentForward& args);

struct LinearXentForwardBackward {
  ConstTensorView hidden = {};
  ConstTensorView weight = {};
  ConstTensorView targets = {};
  ConstTensorView weights = {};  // optional
  TensorView losses = {};        // (B, T) statistics
  TensorView loss_sum = {};      // (1) f64, overwritten
  TensorView dhidden = {};       // (B, T, D), overwritten
  TensorView dweight = {};       // (V, D), accumulated
  double loss_scale = 1;         // 1 / (target tokens of the step, world-wide)
};
void linear_xent_forward_backward(const Context& ctx, const LinearXentForwardBackward& args);

}  // namespace sluice
