// Grouped products of bf16 on Hopper's tensor cores, by wgmma.
#pragma once

#include "kernels/gemm/gemm.h"

namespace sluice::cuda {

// Of products that fits_grouped_mma() takes: those of a GPU of compute capability 9.0, not empty.
bool fits_grouped_wgmma(const GroupedGemm& args);
bool fits_grouped_wgmma(const GroupedGemmWeight& args);

void grouped_gemm_wgmma(const Context& ctx, const GroupedGemm& args);
void grouped_gemm_weight_wgmma(const Context& ctx, const GroupedGemmWeight& args);

}  // namespace sluice::cuda
