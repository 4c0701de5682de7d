// Depthwise causal convolution over time, with bias and SiLU.
//
//   v[t,c] = bias[c] + sum_{k<K} weight[c,k] * x[t-K+1+k, c]     (taps before doc_begin[t] are 0)
//   y[t,c] = silu ? v * sigmoid(v) : v
// Positions before the shard are read from the halo: x[-j] = halo[K-1-j], j = 1..K-1 (absent: 0).
//
// Backward recomputes v. dweight and dbias accumulate; dx and dhalo overwrite. dhalo is the
// gradient of the inputs that the left neighbours own.
#pragma once

#include <string>

#include "kernels/core/context.h"

namespace sluice {

struct CausalConv1dForward {
  ConstTensorView x = {};          // (B, T, C), a slice of a projection
  ConstTensorView weight = {};     // (C, K)
  ConstTensorView bias = {};       // (C), optional
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView halo = {};       // (B, K-1, C), optional
  TensorView y = {};               // (B, T, C), must not alias x
  bool silu = true;
};
void causal_conv1d_forward(const Context& ctx, const CausalConv1dForward& args);

struct CausalConv1dBackward {
  ConstTensorView dy = {};         // (B, T, C)
  ConstTensorView x = {};          // (B, T, C)
  ConstTensorView weight = {};     // (C, K)
  ConstTensorView bias = {};       // (C), optional
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView halo = {};       // (B, K-1, C), optional
  TensorView dx = {};              // (B, T, C), must not alias dy or x
  TensorView dweight = {};         // (C, K), accumulated
  TensorView dbias = {};           // (C), accumulated; given exactly when bias is
  TensorView dhalo = {};           // (B, K-1, C), given exactly when halo is
  bool silu = true;
};
void causal_conv1d_backward(const Context& ctx, const CausalConv1dBackward& args);

// One token: y from x and the last K-1 inputs, which are shifted by one.
struct CausalConv1dStep {
  ConstTensorView x = {};       // (B, C)
  ConstTensorView weight = {};  // (C, K)
  ConstTensorView bias = {};    // (C), optional
  TensorView tail = {};         // (B, K-1, C), read and updated
  TensorView y = {};            // (B, C)
  bool silu = true;
};
void causal_conv1d_step(const Context& ctx, const CausalConv1dStep& args);

// What keeps a convolution of C channels over K tokens with SiLU from a device's fast kernels, for
// a log. Empty: nothing. first: of the channels, in rows of x and dx that are wider.
std::string describe_convolution(Device device, int64_t C, int64_t K, int64_t first);

}  // namespace sluice
