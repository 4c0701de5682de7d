// Output head and cross-entropy in chunks of tokens: whole logits never exist.
//
//   logits[t] = hidden[t] weight^T
//   loss[t]   = weights[t] * (logsumexp(logits[t]) - logits[t, targets[t]])
//
// Tokens whose target is -1 add nothing. loss_sum is the sum over tokens, in double, in token
// order (on a GPU in another order, which the number of tokens fixes). A target outside [-1, V)
// throws DataError on the CPU; a GPU, which nobody waits for, makes its loss and gradient NaN.
//
// The backward needs the logits again, so forward and backward come as one pass too, which gives
// the gradients of scale * sum_t loss[t]:
//   dlogits[t] = scale * weights[t] * (softmax(logits[t]) - onehot(targets[t]))
//   dhidden    = dlogits weight;   dweight += dlogits^T hidden;   scale = loss_scale * step_scale
//
// B batch, T tokens on this rank, D model, V vocabulary
#pragma once

#include "kernels/core/context.h"

namespace sluice {

// Of logits at a time. Each chunk reads weight twice and dweight once, so it must not be small; the
// results depend on it by rounding alone. On a GPU dweight, in f32, passes through memory twice a
// chunk beside a product of some 1 ms, which must hide it.
inline constexpr int64_t kXentChunkBytes = int64_t{64} << 20;
inline constexpr int64_t kXentChunkBytesOnGpu = int64_t{448} << 20;

struct LinearXentForward {
  ConstTensorView hidden = {};   // (B, T, D)
  ConstTensorView weight = {};   // (V, D)
  ConstTensorView targets = {};  // (B, T) i32, -1 = none
  ConstTensorView weights = {};  // (B, T) statistics, optional: 1
  TensorView losses = {};        // (B, T) statistics, overwritten
  TensorView loss_sum = {};      // (1) f64, overwritten
  int64_t chunk_bytes = 0;       // at most, but a token; 0: the device's constant above
};
void linear_xent_forward(const Context& ctx, const LinearXentForward& args);

struct LinearXentForwardBackward {
  ConstTensorView hidden = {};   // (B, T, D)
  ConstTensorView weight = {};   // (V, D)
  ConstTensorView targets = {};  // (B, T) i32, -1 = none
  ConstTensorView weights = {};  // (B, T) statistics, optional: 1
  TensorView losses = {};        // (B, T) statistics, overwritten
  TensorView loss_sum = {};      // (1) f64, overwritten
  TensorView dhidden = {};       // (B, T, D), overwritten
  TensorView dweight = {};       // (V, D) statistics, accumulated
  double loss_scale = 1;
  // (1) f64, optional: multiplies loss_scale. It differs from step to step (1 / target tokens,
  // world-wide), so it is read where the operator runs.
  ConstTensorView step_scale = {};
  int64_t chunk_bytes = 0;  // at most, but a token; 0: the device's constant above
};
void linear_xent_forward_backward(const Context& ctx, const LinearXentForwardBackward& args);

}  // namespace sluice
