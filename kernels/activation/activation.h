// Activations of feed-forward layers.
//
//   swiglu   y = silu(x) * up,  silu(x) = x / (1 + exp(-x))
//            (Shazeer, "GLU Variants Improve Transformer", 2020, eq. 6)
//   relu2    y = max(x, 0)^2    (So et al., "Primer", 2021)
//   gelu     y = x * Phi(x)     with the error function (Hendrycks and Gimpel, 2016)
//
// Backward, with s = 1 / (1 + exp(-x)):
//   swiglu   dx = dy * up * s * (1 + x * (1 - s));   dup = dy * x * s
//   relu2    dx = dy * 2 max(x, 0)
//   gelu     dx = dy * (Phi(x) + x * phi(x))
#pragma once

#include <span>
#include <string>

#include "kernels/core/context.h"

namespace sluice {

enum class Activation : uint8_t { swiglu, relu2, gelu };
std::span<const char* const> enum_names(Activation);

struct ActivationForward {
  Activation kind = Activation::swiglu;
  ConstTensorView x = {};   // (..., F): the gate of swiglu
  ConstTensorView up = {};  // (..., F): given exactly for swiglu
  TensorView y = {};        // (..., F); may alias x or up
};
void activation_forward(const Context& ctx, const ActivationForward& args);

struct ActivationBackward {
  Activation kind = Activation::swiglu;
  ConstTensorView dy = {};  // (..., F)
  ConstTensorView x = {};
  ConstTensorView up = {};  // swiglu only
  TensorView dx = {};       // (..., F), overwritten; may alias dy or x
  TensorView dup = {};      // (..., F), overwritten, swiglu only; may alias up
};
void activation_backward(const Context& ctx, const ActivationBackward& args);

// What keeps rows of F, or parts of wider rows, from a device's fast kernels, for a log. Empty:
// nothing.
std::string describe_activation(Device device, DType dtype, int64_t F);

}  // namespace sluice
