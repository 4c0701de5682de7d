// Grouped products of bf16 on Hopper's tensor cores, by wgmma.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"

namespace sluice::cuda {

// Of products that fits_grouped_mma() takes: those that are not empty, where the code for sm_90a is
// what this GPU has loaded.
bool fits_grouped_wgmma(const GroupedGemm& args);
bool fits_grouped_wgmma(const GroupedGemmWeight& args);

void grouped_gemm_wgmma(const Context& ctx, const GroupedGemm& args);
void grouped_gemm_weight_wgmma(const Context& ctx, const GroupedGemmWeight& args);

// SwiGLU in bf16, rows of whole 16 bytes; the same of the code.
bool fits_grouped_ffn(const GroupedUp& args);
bool fits_grouped_ffn(const GroupedDownBackward& args);
void grouped_up_wgmma(const Context& ctx, const GroupedUp& args);
void grouped_down_backward_wgmma(const Context& ctx, const GroupedDownBackward& args);

}  // namespace sluice::cuda
