// SwiGLU, number by number.
#pragma once

#include "kernels/device/numeric.cuh"

namespace sluice::cuda {

__device__ inline float swiglu(float gate, float up) { return silu(gate) * up; }

struct SwigluGradients {
  float gate, up;
};
__device__ inline SwigluGradients swiglu_gradients(float dy, float gate, float up) {
  const float s = sigmoid(gate);
  return {dy * up * s * (1 + gate * (1 - s)), dy * gate * s};
}

}  // namespace sluice::cuda
