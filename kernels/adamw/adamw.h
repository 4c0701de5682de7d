// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2) over a
// flat span of an arena.
//
//   g = grad_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   value -= lr * ( (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * value )
//
// What differs from step to step is read where the operator runs, so that a GPU can decide by
// itself whether and by what a gradient is scaled, and a captured graph serves every step.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

// What an update takes from its step: indices into an f64 tensor.
enum UpdateScalar : int {
  kLearningRate,
  kCorrection1,  // 1 - beta1^t, t counting applied updates including this one
  kCorrection2,  // 1 - beta2^t
  kGradScale,    // what gradients are multiplied by
  kApply,        // 0: nothing is changed
  kNumUpdateScalars,
};

// Neighbouring elements of the arena that are updated alike: columns of an f64 tensor.
enum UpdateSpan : int {
  kSpanBegin,  // elements [begin, end) of the arena
  kSpanEnd,
  kSpanWeightDecay,
  kSpanLrScale,
  kNumSpanColumns,
};

struct AdamW {
  TensorView value = {};         // (n) f32 or f64, updated: the masters
  TensorView rounded = {};       // (n) bf16, optional: value, rounded
  ConstTensorView grad = {};     // (n)
  TensorView exp_avg = {};       // (n), m
  TensorView exp_avg_sq = {};    // (n), v
  ConstTensorView scalars = {};  // (kNumUpdateScalars) f64
  // (S, kNumSpanColumns) f64, ascending; what no span holds is left alone.
  ConstTensorView spans = {};
  int64_t first = 0;  // index in the arena of element 0
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
};
void adamw(const Context& ctx, const AdamW& args);

}  // namespace sluice
