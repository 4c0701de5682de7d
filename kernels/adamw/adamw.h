// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2) over a
// flat span of an arena.
//
//   g = grad_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   value -= lr * ( (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * value )
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct AdamW {
  TensorView value = {};       // (n), updated
  ConstTensorView grad = {};   // (n)
  TensorView exp_avg = {};     // (n), m
  TensorView exp_avg_sq = {};  // (n), v
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1;
  int64_t t = 1;  // applied updates including this one
};
void adamw(const Context& ctx, const AdamW& args);

}  // namespace sluice
