// Sums and fills of whole tensors. Rows may be strided.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

void add(const Context& ctx, ConstTensorView x, TensorView y);   // y += x
void copy(const Context& ctx, ConstTensorView x, TensorView y);  // y = x, of any dtype
// y = x, rounded to y's dtype (to nearest, ties to even): f64, f32, bf16.
void convert(const Context& ctx, ConstTensorView x, TensorView y);
void scale(const Context& ctx, double factor, TensorView y);  // y *= factor
void zero(const Context& ctx, TensorView y);                  // y = 0, of any dtype

// y = the sum of the rows of x, in the order of kernels/core/halving_tree.h: x: (n, m), y: (m).
void tree_sum(const Context& ctx, ConstTensorView x, TensorView y);  // f32, on the CPU also f64
// total += the sum of the rows of x.
void sum_rows(const Context& ctx, ConstTensorView x, TensorView total);  // total: (row_size)

}  // namespace sluice
