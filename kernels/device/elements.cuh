// A few neighbouring elements of a row, as many as kernels choose: Pack is the case of 16 bytes.
#pragma once

#include <algorithm>

#include "kernels/device/numeric.cuh"

namespace sluice::cuda {

// Moves by accesses of 16 bytes, or of its size if that is less, and is aligned to them.
template <class T, int kWidth>
struct alignas(std::min(16, kWidth* int(sizeof(T)))) Elements {
  T values[kWidth];

  __device__ static Elements load(const T* from) {
    return *reinterpret_cast<const Elements*>(from);
  }
  __device__ void store(T* to) const { *reinterpret_cast<Elements*>(to) = *this; }

  __device__ float operator[](int i) const { return to_float(values[i]); }
  __device__ void set(int i, float value) { values[i] = from_float<T>(value); }
};

}  // namespace sluice::cuda
