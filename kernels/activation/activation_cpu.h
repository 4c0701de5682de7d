// The CPU side of activation, as its dispatcher sees it.
#pragma once

#include "kernels/activation/activation.h"

namespace sluice::cpu {

template <class T>
void activation_forward(const ActivationForward& args);

template <class T>
void activation_backward(const ActivationBackward& args);

// One row in float, vectorised for the processor at hand; the aliasing of the operator is allowed.
struct ActivationForwardRow {
  Activation kind = Activation::swiglu;
  int64_t F = 0;
  const float* x = nullptr;
  const float* up = nullptr;
  float* y = nullptr;
};
void activation_forward_simd(const ActivationForwardRow& row);

struct ActivationBackwardRow {
  Activation kind = Activation::swiglu;
  int64_t F = 0;
  const float* dy = nullptr;
  const float* x = nullptr;
  const float* up = nullptr;
  float* dx = nullptr;
  float* dup = nullptr;
};
void activation_backward_simd(const ActivationBackwardRow& row);

}  // namespace sluice::cpu
