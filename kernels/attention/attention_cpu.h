// The CPU side of attention, as its dispatcher sees it.
#pragma once

#include "kernels/attention/attention.h"

namespace sluice::cpu {

template <class T>
void attention_forward(const AttentionForward& args);

template <class T>
void attention_merge(const AttentionMerge& args);

// dy_y: (B, T, Hq) scratch, dy[t] . y[t].
template <class T>
void attention_backward(const AttentionBackward& args, TensorView dy_y);

}  // namespace sluice::cpu
