// The CPU side of rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/rms_norm/rms_norm.h"

namespace sluice::cpu {

template <class T>
void rms_norm_forward(const RmsNormForward& args);

// partial_dweight: (RowBlocks(rows).count, D), scratch.
template <class T>
void rms_norm_backward(const RmsNormBackward& args, TensorView partial_dweight);

}  // namespace sluice::cpu
