// Sums of squares of a flat span, block by block, accumulated in double. Added up in the order of
// the blocks they give one norm however the span was cut into shards, as long as the cuts are at
// blocks. A block that holds a NaN or an infinity gives a non-finite sum.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

inline constexpr int64_t kNormBlock = 4096;  // elements

struct BlockSquares {
  ConstTensorView x = {};  // (n) f32 or f64
  TensorView sums = {};    // (ceil(n / kNormBlock)) f64, overwritten
};
void block_squares(const Context& ctx, const BlockSquares& args);

// sum = values[places[0]] + values[places[1]] + ...: an order that is given. On a GPU partial sums
// of neighbours are taken first. Zeros at the end change no bit.
struct OrderedSum {
  ConstTensorView values = {};  // (n) f64
  ConstTensorView places = {};  // (m) i64, indices into values
  TensorView sum = {};          // (1) f64, overwritten
};
void ordered_sum(const Context& ctx, const OrderedSum& args);

// What the step's update is told (kernels/adamw): with s the sum of `squares` in order,
//   norm = sqrt(s);  grad_scale = clip / norm if clip > 0 and norm > clip, else 1
//   apply = 1 if norm and loss are finite, else 0
struct ClipGradient {
  ConstTensorView squares = {};  // (n) f64, n small
  ConstTensorView loss = {};     // (1) f64
  double clip = 0;               // 0: never
  TensorView norm = {};          // (1) f64, overwritten
  TensorView grad_scale = {};    // (1) f64, overwritten
  TensorView apply = {};         // (1) f64, overwritten
};
void clip_gradient(const Context& ctx, const ClipGradient& args);

}  // namespace sluice
