// Sums of squares of a flat span, block by block, accumulated in double. Added up in the order of
// the blocks they give one norm however the span was cut into shards, as long as the cuts are at
// blocks. A block that holds a NaN or an infinity gives a non-finite sum.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

inline constexpr int64_t kNormBlock = 4096;  // elements

struct BlockSquares {
  ConstTensorView x = {};  // (n) f32 or f64
  TensorView sums = {};    // (ceil(n / kNormBlock)) f64, overwritten
};
void block_squares(const Context& ctx, const BlockSquares& args);

}  // namespace sluice
