// The products on either side of the activation of experts: feed-forwards of one shape, each
// applied to its own group of rows, the rows [offsets[e], offsets[e+1]) of expert e.
//
//   grouped_up:             up = rows W_up^T;  hidden = activation(up)
//   grouped_down_backward:  with out = hidden W_down^T, from dout: the gradient of up; and hidden
//                           computed again from up, for the gradient of W_down
//
// With SwiGLU `up` holds the gate, then what it gates. In bf16 on Hopper the activation is part of
// the product: a pass over up and hidden less in the forward, two in the backward. hidden has the
// same bits in both directions. Rows of no group are left alone, or hold anything. Without offsets
// all rows are one expert's: a dense feed-forward.
//
// X experts, D model, F hidden width, U = 2F with a gate, else F
#pragma once

#include <string>

#include "kernels/activation/activation.h"
#include "kernels/core/context.h"

namespace sluice {

struct GroupedUp {
  Activation kind = Activation::swiglu;
  ConstTensorView rows = {};     // (rows, D)
  ConstTensorView weights = {};  // (X, U, D)
  ConstTensorView offsets = {};  // (X + 1) i64, optional
  TensorView up = {};            // (rows, U)
  TensorView hidden = {};        // (rows, F)
};
void grouped_up(const Context& ctx, const GroupedUp& args);

struct GroupedDownBackward {
  Activation kind = Activation::swiglu;
  ConstTensorView dout = {};     // (rows, D)
  ConstTensorView weights = {};  // (X, D, F)
  ConstTensorView offsets = {};  // (X + 1) i64, optional
  ConstTensorView up = {};       // (rows, U)
  TensorView dup = {};           // (rows, U), overwritten
  TensorView hidden = {};        // (rows, F), overwritten
};
void grouped_down_backward(const Context& ctx, const GroupedDownBackward& args);

// What keeps grouped products of experts from a device's tensor cores, for a log. Empty: nothing.
std::string describe_experts(Device device, DType dtype, int64_t D, int64_t F);

}  // namespace sluice
