// The CUDA side of elementwise, as its dispatcher sees it.
#pragma once

#include "kernels/core/context.h"

namespace sluice::cuda {

void add(const Context& ctx, ConstTensorView x, TensorView y);
void copy(const Context& ctx, ConstTensorView x, TensorView y);
void convert(const Context& ctx, ConstTensorView x, TensorView y);
void scale(const Context& ctx, double factor, TensorView y);
void zero(const Context& ctx, TensorView y);
void tree_sum(const Context& ctx, ConstTensorView x, TensorView y);

// partial: (RowBlocks(rows, kSumBlocks).count, row_size), scratch.
inline constexpr int64_t kSumBlocks = 256;
void sum_rows(const Context& ctx, ConstTensorView x, TensorView total, TensorView partial);

}  // namespace sluice::cuda
