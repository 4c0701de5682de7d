// From a run-time dtype to a template argument, for what GPUs compute with.
#pragma once

#include <utility>

#include "kernels/core/tensor.h"
#include "kernels/device/numeric.cuh"

namespace sluice::cuda {

// f32, or Bf16 with arithmetic in f32.
template <class Body>
decltype(auto) dispatch_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return std::forward<Body>(body).template operator()<float>();
    case DType::bf16:
      return std::forward<Body>(body).template operator()<Bf16>();
    default:
      break;
  }
  throw Error(ExitCode::bug, concat("GPU operators compute in f32 and bf16, got ", name_of(dtype)));
}

// The pointer to a tensor's first element, as kernels see it. Throws if T is not the dtype.
template <class T, class Void>
auto* pointer(const BasicTensorView<Void>& view) {
  if constexpr (std::is_same_v<T, Bf16>) {
    using Element = std::conditional_t<std::is_const_v<Void>, const Bf16, Bf16>;
    return reinterpret_cast<Element*>(view.template as<bf16>());
  } else {
    return view.template as<T>();
  }
}
// The same, null for an optional tensor that was not given.
template <class T, class Void>
auto* optional_pointer(const BasicTensorView<Void>& view) {
  return view ? pointer<T>(view) : nullptr;
}

}  // namespace sluice::cuda
