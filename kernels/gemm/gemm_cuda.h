// The CUDA side of gemm, as its dispatcher sees it.
#pragma once

#include "kernels/gemm/gemm.h"

namespace sluice::cuda {

// Scratch of cuBLASLt. The library recommends 32 MiB on sm_90; with less it has fewer algorithms.
inline constexpr int64_t kGemmWorkspaceBytes = int64_t{32} << 20;

// a and b of one dtype: f32 with c f32, or bf16 with c bf16 or f32. The bias is of c's dtype.
// workspace: of the size above.
void gemm(const Context& ctx, const Gemm& args, const TensorView& workspace);
// The same by a kernel of sluice's own, for what cuBLASLt refuses.
void gemm_plain(const Context& ctx, const Gemm& args);

// x = the sum of three bf16 matrices: the first is x rounded, each next one what is left, rounded.
// They lie below each other, or side by side. One term alone is x rounded.
inline constexpr int64_t kBf16Terms = 3;
enum class Stack : uint8_t { below, beside };
void split_into_bf16(const Context& ctx, const ConstTensorView& x, Stack stack,
                     const TensorView& terms);
// c = beta c + bias + the sum of the three f32 matrices that products of stacked terms made. bias
// (columns) f32: optional.
void add_stacked(const Context& ctx, const ConstTensorView& sums, Stack stack, double beta,
                 const ConstTensorView& bias, const TensorView& c);

void grouped_gemm(const Context& ctx, const GroupedGemm& args);
void grouped_gemm_weight(const Context& ctx, const GroupedGemmWeight& args);

}  // namespace sluice::cuda
