// Sum of squares of a flat span, accumulated in double over blocks of fixed size in a fixed order.
// A span that holds a NaN or an infinity gives a non-finite sum.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct SquaredNorm {
  ConstTensorView x = {};  // (n)
  TensorView sum = {};     // (1) f64, overwritten
};
void squared_norm(const Context& ctx, const SquaredNorm& args);

}  // namespace sluice
