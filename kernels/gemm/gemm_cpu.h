// The CPU side of gemm, as its dispatcher sees it.
#pragma once

#include "kernels/gemm/gemm.h"

namespace sluice::cpu {

template <class T>
void gemm(const Gemm& args);

template <class T>
void grouped_gemm(const GroupedGemm& args);

template <class T>
void grouped_gemm_weight(const GroupedGemmWeight& args);

}  // namespace sluice::cpu
