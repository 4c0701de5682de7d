// The CPU side of elementwise, as its dispatcher sees it.
#pragma once

#include "kernels/core/tensor.h"

namespace sluice::cpu {

template <class T>
void add(ConstTensorView x, TensorView y);
template <class T>
void scale(T factor, TensorView y);
template <class T>
void tree_sum(ConstTensorView x, TensorView y);
// partial: (RowBlocks(rows).count, row_size), scratch.
template <class T>
void sum_rows(ConstTensorView x, TensorView total, TensorView partial);

void convert(ConstTensorView x, TensorView y);
// Bytes, whatever the dtype.
void copy(ConstTensorView x, TensorView y);
void zero(TensorView y);

}  // namespace sluice::cpu
