// The CUDA side of gated_rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/core/row_blocks.h"
#include "kernels/device/row_shape.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace sluice::cuda {

void gated_rms_norm_forward(const Context& ctx, const GatedRmsNormForward& args);

// Of a column of dy, x and z.
constexpr int64_t gated_norm_staged_bytes(int64_t element) { return 3 * element; }
// Whether the backward holds groups of W columns in registers; the forward then does. (They must be
// aligned, too.)
inline bool gated_norm_holds(DType dtype, int64_t W) {
  const int64_t element = int64_t(size_of(dtype));
  return holds_rows(W, element, gated_norm_staged_bytes(element));
}

// How many blocks take turns with the rows of the backward. A block works in one group.
inline RowBlocks gated_norm_row_blocks(int64_t rows, int64_t E, int64_t groups) {
  return RowBlocks(rows, std::max<int64_t>(1, row_blocks(E / groups, 16) / groups));
}
// partial_dweight: (gated_norm_row_blocks(rows, E, groups).count, E) f32, scratch.
void gated_rms_norm_backward(const Context& ctx, const GatedRmsNormBackward& args,
                             TensorView partial_dweight);

}  // namespace sluice::cuda
