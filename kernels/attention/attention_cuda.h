// The CUDA side of attention, as its dispatcher sees it.
#pragma once

#include "kernels/attention/attention.h"

namespace sluice::cuda {

void attention_forward(const Context& ctx, const AttentionForward& args);

void attention_merge(const Context& ctx, const AttentionMerge& args);

// stats: (B, Hq, T, 2) f32 scratch: of each query, log2(e) lse and dy . y.
void attention_backward(const Context& ctx, const AttentionBackward& args, TensorView stats);

}  // namespace sluice::cuda
