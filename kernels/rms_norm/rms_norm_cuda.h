// The CUDA side of rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/core/row_blocks.h"
#include "kernels/device/row_shape.h"
#include "kernels/rms_norm/rms_norm.h"

namespace sluice::cuda {

void rms_norm_forward(const Context& ctx, const RmsNormForward& args);

// How many blocks take turns with the rows of the backward.
inline RowBlocks norm_row_blocks(int64_t rows, int64_t D) {
  return RowBlocks(rows, row_blocks(D, 16));
}
// partial_dweight: (norm_row_blocks(rows, D).count, D) f32, scratch.
void rms_norm_backward(const Context& ctx, const RmsNormBackward& args, TensorView partial_dweight);

}  // namespace sluice::cuda
