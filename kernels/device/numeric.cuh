// Numbers on the device: storage types to f32 and back, 16 bytes at a time, and the scalar
// functions that operators share.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::cuda {

// Storage of bf16 in kernels. Arithmetic is f32.
using Bf16 = __nv_bfloat16;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Bf16 value) { return __bfloat162float(value); }

template <class T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline Bf16 from_float<Bf16>(float value) {
  return __float2bfloat16_rn(value);
}

// kWidth neighbouring elements, loaded and stored by one instruction of 16 bytes.
template <class T>
struct alignas(16) Pack {
  static constexpr int kWidth = 16 / sizeof(T);
  T values[kWidth];

  __device__ static Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }
  __device__ void store(T* to) const { *reinterpret_cast<Pack*>(to) = *this; }
};

// One instruction each, to about 2 ulp; numbers below 2^-126 are zeros.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float sigmoid(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  return reciprocal_approx(1 + exp2_approx(-kLog2E * x));
}
__device__ inline float silu(float x) { return x * sigmoid(x); }
// log(1 + exp(x)), exact where exp(x) is small.
__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(__expf(x)); }

}  // namespace sluice::cuda
