// Rotary position embedding (Su et al., "RoFormer", 2021, eq. 34) in the rotate-half form: within
// the first R columns of a head, column i pairs with column i + R/2.
//
//   angle = position * theta^(-2i/R);   (a, b) -> (a cos - b sin, b cos + a sin)
// The other columns pass through. The backward is the rotation by the opposite angle. Angles are
// computed in double.
#pragma once

#include <string>

#include "kernels/core/context.h"

namespace sluice {

struct Rope {
  TensorView x = {};               // (B, T, heads, head_dim), rotated in place
  ConstTensorView positions = {};  // (B, T) i32
  int64_t rotary_dims = 0;         // R, even, at most head_dim
  double theta = 10000;
};
void rope_forward(const Context& ctx, const Rope& args);
void rope_backward(const Context& ctx, const Rope& args);  // x is the gradient

// What keeps heads from a device's fast kernel, for a log. Empty: nothing.
std::string describe_rope(Device device, DType dtype, int64_t head_dim, int64_t rotary_dims);

}  // namespace sluice
