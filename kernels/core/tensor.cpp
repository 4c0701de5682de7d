#include "kernels/core/tensor.h"

namespace sluice {

std::string to_string(const Dims& dims) {
  std::string text = "(";
  for (int dim = 0; dim < dims.rank; ++dim) {
    if (dim > 0) text += ", ";
    text += std::to_string(dims[dim]);
  }
  return text + ")";
}

void expect(const char* name, const ConstTensorView& view, const Dims& dims, DType dtype,
            Device device) {
  SLUICE_CHECK(view.dims == dims, name, " must be ", to_string(dims), ", got ",
               to_string(view.dims));
  SLUICE_CHECK(view.dtype == dtype, name, " must be ", name_of(dtype), ", got ",
               name_of(view.dtype));
  SLUICE_CHECK(view.device == device, name, " lies on another device than the operator runs on");
}

}  // namespace sluice
