// What happens between the matrix products of a chunk of tokens, on either device.
#pragma once

#include "kernels/core/tensor.h"

namespace sluice {

struct XentChunk {
  TensorView logits = {};        // (rows, V); becomes dlogits if with_gradient
  int64_t first = 0;             // index in (B, T) of the chunk's first token
  ConstTensorView targets = {};  // (B, T) i32
  ConstTensorView weights = {};  // (B, T), optional
  TensorView losses = {};        // (B, T)
  bool with_gradient = false;
  double loss_scale = 1;
  ConstTensorView step_scale = {};  // (1) f64, optional
};

}  // namespace sluice
