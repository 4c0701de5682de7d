// The CPU side of grad_norm, as its dispatcher sees it.
#pragma once

#include "kernels/grad_norm/grad_norm.h"

namespace sluice::cpu {

template <class T>
void block_squares(const BlockSquares& args);
void ordered_sum(const OrderedSum& args);
void clip_gradient(const ClipGradient& args);

}  // namespace sluice::cpu
