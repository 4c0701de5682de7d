// Gated RMSNorm of Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024, section 6.3), per group.
//
//   GateOrder::before   y = weight * h * rstd(h), h = x * silu(z)     (Mamba-2, Bamba, Nemotron-H)
//   GateOrder::after    y = weight * x * rstd(x) * silu(z)
//
// with rstd = (mean of the square over the group's E/G columns + eps)^(-1/2).
//
// Backward, with n = h * rstd (x * rstd) and g = weight * dy (* silu(z)):
//   d       = rstd * (g - n * mean_j(g_j n_j))                        means over the group
//   before  dx = d * silu(z),  dz = d * x * silu'(z),            dweight += dy * n
//   after   dx = d,            dz = weight * dy * n * silu'(z),  dweight += dy * n * silu(z)
// n and rstd are recomputed from x and z: nothing but the inputs is saved. Sums over a group are
// taken in the dtype of the statistics, which weight and dweight have too.
#pragma once

#include <span>
#include <string>

#include "kernels/core/context.h"

namespace sluice {

enum class GateOrder : uint8_t { before, after };
std::span<const char* const> enum_names(GateOrder);

struct GatedRmsNormForward {
  ConstTensorView x = {};       // (..., E)
  ConstTensorView z = {};       // (..., E), a slice of a projection
  ConstTensorView weight = {};  // (E)
  TensorView y = {};            // (..., E); may alias x
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
  TensorView dz = {};           // (..., E), overwritten; must not alias an input
  TensorView dweight = {};      // (E), accumulated
  int64_t groups = 1;
  GateOrder gate = GateOrder::before;
  double eps = 1e-5;
};
void gated_rms_norm_backward(const Context& ctx, const GatedRmsNormBackward& args);

// What keeps groups of W columns from a device's fast kernels, for a log. Empty: nothing.
std::string describe_gated_norm(Device device, DType dtype, int64_t W);

}  // namespace sluice
