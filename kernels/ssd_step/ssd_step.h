// One token of Mamba-2's recurrence (Dao and Gu, "Transformers are SSMs", 2024, eq. 16), for
// generation. Head h reads group g = h * G / H.
//
//   dt = clamp(softplus(dt_raw + dt_bias), dt_min, dt_max);   state = exp(dt A) state + dt x B^T
//   y  = state C + D x
#pragma once

#include <limits>

#include "kernels/core/context.h"

namespace sluice {

struct SsdStep {
  ConstTensorView x = {};        // (B, H, P)
  ConstTensorView dt_raw = {};   // (B, H)
  ConstTensorView dt_bias = {};  // (H)
  ConstTensorView A_log = {};    // (H)
  ConstTensorView B = {};        // (B, G, N)
  ConstTensorView C = {};        // (B, G, N)
  ConstTensorView D = {};        // (H)
  TensorView state = {};         // (B, H, P, N), read and updated
  TensorView y = {};             // (B, H, P)
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();
};
void ssd_step(const Context& ctx, const SsdStep& args);

}  // namespace sluice
