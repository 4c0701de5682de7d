// Token embedding: y[t] = weight[tokens[t]].
//
// Backward: dweight[v] += sum of dy[t] over the tokens t with tokens[t] == v, added in token order
// whatever the thread count (on GPUs in another fixed order). A token outside [0, V) throws
// DataError; GPUs cannot throw: there its y is NaN, and its dy goes nowhere.
//
// B batch, T tokens on this rank, V vocabulary, D model
#pragma once

#include <string>

#include "kernels/core/context.h"

namespace sluice {

struct EmbeddingForward {
  ConstTensorView tokens = {};  // (B, T) i32
  ConstTensorView weight = {};  // (V, D), on GPUs also bf16 beside y in f32
  TensorView y = {};            // (B, T, D)
};
void embedding_forward(const Context& ctx, const EmbeddingForward& args);

struct EmbeddingBackward {
  ConstTensorView tokens = {};  // (B, T) i32
  ConstTensorView dy = {};      // (B, T, D)
  TensorView dweight = {};      // (V, D) statistics, accumulated
};
void embedding_backward(const Context& ctx, const EmbeddingBackward& args);

// What keeps rows of D from a device's fast kernels, for a log. Empty: nothing.
std::string describe_embedding(Device device, DType dtype, int64_t D);

}  // namespace sluice
