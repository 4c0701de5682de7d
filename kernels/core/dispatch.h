// From a run-time dtype to a template argument, by a lambda:
//   dispatch_float(x.dtype, [&]<class T>() { rms_norm_forward<T>(a); });
//
// And to the device: after its checks an operator says
//   if (ctx.device.is_cuda()) {
//     if constexpr (kBuiltWithCuda) return cuda::rms_norm_forward(ctx, args);
//     fail_no_cuda("rms_norm_forward");
//   }
#pragma once

#include <utility>

#include "kernels/core/dtype.h"

namespace sluice {

#ifdef SLUICE_WITH_CUDA
inline constexpr bool kBuiltWithCuda = true;
#else
inline constexpr bool kBuiltWithCuda = false;
#endif

// The dtypes that CPU operators compute in.
template <class Body>
decltype(auto) dispatch_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return std::forward<Body>(body).template operator()<double>();
    case DType::f32:
      return std::forward<Body>(body).template operator()<float>();
    default:
      break;
  }
  throw Error(ExitCode::bug, concat("CPU operators compute in f32 and f64, got ", name_of(dtype)));
}

[[noreturn]] inline void fail_no_cuda(const char* op) {
  throw UsageError(
      concat(op, ": this build has no CUDA; use device: cpu, or build with SLUICE_WITH_CUDA=ON"));
}

}  // namespace sluice
