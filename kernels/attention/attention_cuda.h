// The CUDA side of attention, as its dispatcher sees it.
#pragma once

#include "kernels/attention/attention.h"

namespace sluice::cuda {

// Heads that the kernels on tensor cores take. (Rows must be aligned, too.)
inline constexpr int64_t kMaxTensorHeadDim = 128;
constexpr bool on_tensor_cores(int64_t hd) { return hd % 8 == 0 && hd <= kMaxTensorHeadDim; }

void attention_forward(const Context& ctx, const AttentionForward& args);

void attention_merge(const Context& ctx, const AttentionMerge& args);

// stats: (B, Hq, T, 4) f32 scratch, what the kernels need to know of each query.
void attention_backward(const Context& ctx, const AttentionBackward& args, TensorView stats);

// lse (B, T, Hq) and the same with heads before tokens, (B, Hq, T) packed.
void lse_from_stats(const Context& ctx, const float* stats, const TensorView& lse);
void stats_from_lse(const Context& ctx, const ConstTensorView& lse, float* stats);

}  // namespace sluice::cuda
