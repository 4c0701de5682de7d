// The CUDA side of attention, as its dispatcher sees it.
#pragma once

#include "kernels/attention/attention.h"

namespace sluice::cuda {

void attention_forward(const Context& ctx, const AttentionForward& args);

void attention_merge(const Context& ctx, const AttentionMerge& args);

// stats: (B, Hq, T, 4) f32 scratch, what the kernels need to know of each query.
void attention_backward(const Context& ctx, const AttentionBackward& args, TensorView stats);

}  // namespace sluice::cuda
