// Root-mean-square norm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4),
// fused with the residual add before it.
//
//   sum_i  = x_i + delta_i                      (delta absent: sum = x, and nothing is written)
//   rstd   = (mean_i(sum_i^2) + eps)^(-1/2)
//   y_i    = weight_i * sum_i * rstd            (weight absent: 1)
//
// Backward, with n_i = sum_i * rstd, g_i = weight_i * dy_i:
//   dx_i       = rstd * (g_i - n_i * mean_j(g_j n_j)) + dsum_i       (dsum absent: 0)
//   dweight_i += dy_i * n_i
// dx is the gradient of both x and delta. Means accumulate in double (on GPUs in f32).
//
// On GPUs the residual stream - x, sum, dsum, dx - may be f32 while the branches - delta, y, dy -
// are bf16. Weight, rstd and dweight are statistics always.
#pragma once

#include <initializer_list>
#include <string>

#include "kernels/core/context.h"

namespace sluice {

struct RmsNormForward {
  ConstTensorView x = {};       // (..., D), at least one leading dim
  ConstTensorView delta = {};   // like x but of y's dtype, optional
  ConstTensorView weight = {};  // (D), optional
  TensorView sum = {};          // like x; given exactly when delta is. May alias x or delta.
  TensorView y = {};            // like x; may alias x (without delta) or delta. All aliases are
                                // between tensors of one dtype and one row stride.
  TensorView rstd = {};         // (rows) statistics, optional
  double eps = 1e-5;
};
void rms_norm_forward(const Context& ctx, const RmsNormForward& args);

struct RmsNormBackward {
  ConstTensorView dy = {};      // (..., D)
  ConstTensorView sum = {};     // (..., D), the normalised input: sum of the forward, or x
  ConstTensorView weight = {};  // (D), optional
  ConstTensorView rstd = {};    // (rows)
  ConstTensorView dsum = {};    // like sum, optional: gradient arriving at `sum` from elsewhere
  TensorView dx = {};           // like sum, overwritten; may alias dy (if of one dtype) or dsum
  TensorView dx_rounded = {};   // like dy, optional, only where dx has another dtype: dx rounded,
                                // what the branch below takes as its dy. May alias dy.
  TensorView dweight = {};      // (D), accumulated; given exactly when weight is
};
void rms_norm_backward(const Context& ctx, const RmsNormBackward& args);

// What keeps rows of D from a device's fast kernels, for a log. Empty: nothing. `apart`: of rows
// that are slices of wider ones, elements from one to the next, and before the slice.
std::string describe_norm(Device device, DType residual, DType dtype, int64_t D,
                          std::initializer_list<int64_t> apart = {});

}  // namespace sluice
