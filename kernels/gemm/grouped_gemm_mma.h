// Grouped products of bf16 on tensor cores, by mma.sync: for every GPU from sm_80 on.
#pragma once

#include "kernels/gemm/gemm.h"

namespace sluice::cuda {

// Rows of whole, aligned 16 bytes.
bool fits_grouped_mma(const GroupedGemm& args);
bool fits_grouped_mma(const GroupedGemmWeight& args);

void grouped_gemm_mma(const Context& ctx, const GroupedGemm& args);
void grouped_gemm_weight_mma(const Context& ctx, const GroupedGemmWeight& args);

}  // namespace sluice::cuda
