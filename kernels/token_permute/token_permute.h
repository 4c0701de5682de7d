// Sorting tokens by expert and back. Entries are token-major, then choice: entry i = t * k + j.
// Within an expert entries keep that order (a stable counting sort), so results are reproducible.
//
//   index:      slot[t,j]       = position of the entry among the sorted rows, -1 if dropped
//               offsets[e]      = first slot of expert e
//   permute:    rows[slot[t,j]] = x[t]
//   unpermute:  y[t]            = sum_j weights[t,j] * rows[slot[t,j]]   (dropped entries add
//                                 nothing)
//
// permute's backward takes along what the router leaves for x, since both are sums into dx.
//
// With a capacity, expert e keeps the first `capacity` of its entries in each row of the batch, in
// token order (Lepikhin et al., "GShard", 2020); per row, so that no layout changes what is
// dropped: where earlier tokens of a row are on other ranks, `before` tells what they chose.
//
// The CPU refuses experts outside [0, X); a GPU, which nobody waits for, drops such entries.
//
// B batch, T tokens on this rank, k choices of a token, X experts, D model
#pragma once

#include <string>

#include "kernels/core/context.h"

namespace sluice {

struct TokenIndex {
  ConstTensorView experts = {};  // (B, T, k) i32, in [0, X)
  ConstTensorView before = {};   // (B, X) f32 or f64: a row's choices of e before its tokens here;
                                 // optional: none
  TensorView slot = {};          // (B, T, k) i32
  TensorView offsets = {};       // (X + 1) i64
  TensorView kept = {};          // (X) i32: kept entries of every expert; optional
  int64_t capacity = 0;          // entries an expert takes from one row; 0: all
};
void token_index(const Context& ctx, const TokenIndex& args);

struct TokenPermuteForward {
  ConstTensorView x = {};     // (B, T, D)
  ConstTensorView slot = {};  // (B, T, k) i32
  TensorView rows = {};       // (B*T*k, D), filled up to offsets[X]
};
void token_permute_forward(const Context& ctx, const TokenPermuteForward& args);

struct TokenPermuteBackward {
  ConstTensorView drows = {};    // (B*T*k, D)
  ConstTensorView slot = {};     // (B, T, k) i32
  ConstTensorView dlogits = {};  // (B, T, X) statistics, optional
  ConstTensorView router = {};   // (X, D) statistics: of logits = x router^T; with dlogits
  TensorView dx = {};  // (B, T, D), overwritten: the sum over choices, in order; + dlogits router
};
void token_permute_backward(const Context& ctx, const TokenPermuteBackward& args);

struct TokenUnpermuteForward {
  ConstTensorView rows = {};     // (B*T*k, D)
  ConstTensorView slot = {};     // (B, T, k) i32
  ConstTensorView weights = {};  // (B, T, k) statistics
  TensorView y = {};             // (B, T, D), overwritten
};
void token_unpermute_forward(const Context& ctx, const TokenUnpermuteForward& args);

// drows[slot[t,j]] = weights[t,j] * dy[t];  dweights[t,j] = <dy[t], rows[slot[t,j]]>
struct TokenUnpermuteBackward {
  ConstTensorView dy = {};       // (B, T, D)
  ConstTensorView rows = {};     // (B*T*k, D)
  ConstTensorView slot = {};     // (B, T, k) i32
  ConstTensorView weights = {};  // (B, T, k) statistics
  TensorView drows = {};         // (B*T*k, D), overwritten up to offsets[X]; may alias rows
  TensorView dweights = {};      // (B, T, k) statistics, overwritten; 0 where dropped
};
void token_unpermute_backward(const Context& ctx, const TokenUnpermuteBackward& args);

// What keeps rows of D from a device's fast kernels, for a log. Empty: nothing.
std::string describe_permutation(Device device, DType dtype, int64_t D);

}  // namespace sluice
