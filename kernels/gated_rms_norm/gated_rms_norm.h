// Gated RMSNorm of Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024, section 6.3), per group.
//
//   GateOrder::before   h = x * silu(z),  y = weight * h * rstd_g(h)         (Mamba-2, Bamba,
//   Nemotron-H) GateOrder::after    y = weight * x * rstd_g(x) * silu(z)
// with rstd_g = (mean over the group's E/G columns of the square + eps)^(-1/2).
//
// The backward recomputes h and rstd from x and z: nothing but the inputs is saved.
#pragma once

#include <span>

#include "kernels/core/context.h"

namespace sluice {

enum class GateOrder : uint8_t { before, after };
std::span<const char* const> enum_names(GateOrder);

struct GatedRmsNormForward {
  ConstTensorView x = {};       // (..., E)
  ConstTensorView z = {};       // (..., E), a slice of a projection
  ConstTensorView weight = {};  // (E)
  TensorView y = {};            // (..., E)
  int64_t groups = 1;           // divides E
  GateOrder gate = GateOrder::before;
  double eps = 1e-5;
};
void gated_rms_norm_forward(const Context& ctx, const GatedRmsNormForward& args);

struct GatedRmsNormBackward {
  ConstTensorView dy = {};      // (..., E)
  ConstTensorView x = {};       // (..., E)
  ConstTensorView z = {};       // (..., E)
  ConstTensorView weight = {};  // (E)
  TensorView dx = {};           // (..., E), overwritten; may alias dy
  TensorView dz = {};           // (..., E), overwritten
  TensorView dweight = {};      // (E), accumulated
  int64_t groups = 1;
  GateOrder gate = GateOrder::before;
  double eps = 1e-5;
};
void gated_rms_norm_backward(const Context& ctx, const GatedRmsNormBackward& args);

}  // namespace sluice
