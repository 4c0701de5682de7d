// The CUDA side of rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/core/context.h"
#include "kernels/rms_norm/rms_norm.h"

namespace sluice::cuda {

void rms_norm_forward(const Context& ctx, const RmsNormForward& args);

// partial_dweight: (RowBlocks(rows, kNormBlocks).count, D), scratch.
inline constexpr int64_t kNormBlocks = 264;  // two a multiprocessor of an H100
void rms_norm_backward(const Context& ctx, const RmsNormBackward& args, TensorView partial_dweight);

}  // namespace sluice::cuda
