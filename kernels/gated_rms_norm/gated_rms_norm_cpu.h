// The CPU side of gated_rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace sluice::cpu {

template <class T>
void gated_rms_norm_forward(const GatedRmsNormForward& args);

// partial_dweight: (RowBlocks(rows).count, E), scratch.
template <class T>
void gated_rms_norm_backward(const GatedRmsNormBackward& args, TensorView partial_dweight);

}  // namespace sluice::cpu
