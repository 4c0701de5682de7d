// The CPU side of causal_conv1d, as its dispatcher sees it.
#pragma once

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/core/row_blocks.h"

namespace sluice::cpu {

// The reference.
template <class T>
void causal_conv1d_forward(const CausalConv1dForward& args);
template <class T>
void causal_conv1d_backward(const CausalConv1dBackward& args);
template <class T>
void causal_conv1d_step(const CausalConv1dStep& args);

// The fast float path. transposed: (K, C), scratch for the weights with channels innermost.
void causal_conv1d_forward_simd(const CausalConv1dForward& args, TensorView transposed);
// partial: (conv_blocks(B * T).count, K + 1, C), scratch for dweight and dbias.
void causal_conv1d_backward_simd(const CausalConv1dBackward& args, TensorView transposed,
                                 TensorView partial);

// A block recomputes the K-1 gradients behind its end, so blocks must not be small.
inline RowBlocks conv_blocks(int64_t rows) { return RowBlocks(rows, 16); }

// Where tap `position` (negative: before the shard) of row b is read: in x, in the halo, or nowhere
// (null: it counts as 0) if it lies before the document or there is no halo.
template <class T>
const T* conv_tap(const ConstTensorView& x, const ConstTensorView& halo, int64_t b,
                  int64_t position, int64_t doc_begin) {
  if (position < doc_begin) return nullptr;
  if (position >= 0) return x.row<T>(b * x.dim(1) + position);
  const int64_t width = halo ? halo.dim(1) : 0;
  return position + width >= 0 ? halo.row<T>(b * width + width + position) : nullptr;
}

}  // namespace sluice::cpu
