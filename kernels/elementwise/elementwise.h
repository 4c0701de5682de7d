// Sums and fills of whole tensors.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

void add(const Context& ctx, ConstTensorView x, TensorView y);   // y += x
void copy(const Context& ctx, ConstTensorView x, TensorView y);  // y = x, rows may be strided
void scale(const Context& ctx, double factor, TensorView y);     // y *= factor
void zero(const Context& ctx, TensorView y);                     // y = 0
void add_bias(const Context& ctx, ConstTensorView bias, TensorView y);  // y[row] += bias (row_size)
void sum_rows(const Context& ctx, ConstTensorView x,
              TensorView total);  // total (row_size) += sum of rows

}  // namespace sluice
