// The CUDA side of gated_rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/core/row_blocks.h"
#include "kernels/device/row_shape.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace sluice::cuda {

void gated_rms_norm_forward(const Context& ctx, const GatedRmsNormForward& args);

// How many blocks take turns with the rows of the backward. A block works in one group.
inline RowBlocks gated_norm_row_blocks(int64_t rows, int64_t E, int64_t groups) {
  return RowBlocks(rows, std::max<int64_t>(1, row_blocks(E / groups, 16) / groups));
}
// partial_dweight: (gated_norm_row_blocks(rows, E, groups).count, E) f32, scratch.
void gated_rms_norm_backward(const Context& ctx, const GatedRmsNormBackward& args,
                             TensorView partial_dweight);

}  // namespace sluice::cuda
