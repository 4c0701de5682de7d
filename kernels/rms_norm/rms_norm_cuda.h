// The CUDA side of rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/core/row_blocks.h"
#include "kernels/device/row_shape.h"
#include "kernels/rms_norm/rms_norm.h"

namespace sluice::cuda {

void rms_norm_forward(const Context& ctx, const RmsNormForward& args);

// Of a column of sum, dsum and dy.
constexpr int64_t staged_bytes(int64_t residual, int64_t element) { return element + 2 * residual; }
// Whether the backward holds rows in registers; the forward then does. (They must be aligned, too.)
inline bool rms_norm_holds(DType residual, DType dtype, int64_t D) {
  const int64_t of_residual = int64_t(size_of(residual)), of_dtype = int64_t(size_of(dtype));
  return holds_rows(D, std::max(of_residual, of_dtype), staged_bytes(of_residual, of_dtype));
}

// How many blocks take turns with the rows of the backward.
inline RowBlocks norm_row_blocks(int64_t rows, int64_t D) {
  return RowBlocks(rows, row_blocks(D, 16));
}
// partial_dweight: (norm_row_blocks(rows, D).count, D) f32, scratch.
void rms_norm_backward(const Context& ctx, const RmsNormBackward& args, TensorView partial_dweight);

}  // namespace sluice::cuda
