// The CPU side of linear_xent, as its dispatcher sees it: what happens between the matrix products.
#pragma once

#include "kernels/linear_xent/linear_xent.h"

namespace sluice::cpu {

struct XentChunk {
  TensorView logits = {};        // (rows, V); becomes dlogits if with_gradient
  int64_t first = 0;             // index in (B, T) of the chunk's first token
  ConstTensorView targets = {};  // (B, T) i32, checked
  ConstTensorView weights = {};  // (B, T), optional
  TensorView losses = {};        // (B, T)
  bool with_gradient = false;
  double loss_scale = 1;
};
template <class T>
void xent_chunk(const XentChunk& chunk);

// In token order.
template <class T>
double xent_loss_sum(const ConstTensorView& losses);

}  // namespace sluice::cpu
