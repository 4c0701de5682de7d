// The CPU side of grad_norm, as its dispatcher sees it.
#pragma once

#include "kernels/grad_norm/grad_norm.h"

namespace sluice::cpu {

inline constexpr int64_t kNormBlock = 65536;  // elements

// partial: (ceil(n / kNormBlock)) f64, scratch.
template <class T>
void squared_norm(const SquaredNorm& args, TensorView partial);

}  // namespace sluice::cpu
