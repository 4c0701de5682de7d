// Causal softmax attention with grouped queries, sliding window and document mask, blockwise:
// scores exist for one block of queries by one block of keys (Dao et al., "FlashAttention", 2022,
// algorithms 1 and 4; Ainslie et al., "GQA", 2023).
//
// Query t has index t + query_begin among the keys. It sees key s iff
//   s <= t + query_begin,   s >= doc_begin[t] + query_begin,
//   and, if window > 0,     s > t + query_begin - window
// A query always sees its own key (doc_begin[t] <= t). doc_begin does not decrease along a row:
// blocks of keys before it are skipped. Keys that no query sees get zero gradients.
//   lse[t] = log sum_s exp(scale q[t] . k[s])
//   p[t,s] = exp(scale q[t] . k[s] - lse[t]);   y[t] = sum_s p[t,s] v[s]
// Query head h reads key-value head h * Hkv / Hq.
//
// Backward (recomputing p):  dv[s] = sum p dy[t];  dp = dy[t] . v[s];  ds = p (dp - dy[t] . y[t]);
//   dq[t] = scale sum_s ds k[s];  dk[s] = scale sum_t ds q[t]. A fixed order of sums.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct AttentionForward {
  ConstTensorView q = {};          // (B, T, Hq, hd)
  ConstTensorView k = {};          // (B, S, Hkv, hd)
  ConstTensorView v = {};          // (B, S, Hkv, hd)
  ConstTensorView doc_begin = {};  // (B, T) i32, relative to query 0
  TensorView y = {};               // (B, T, Hq, hd)
  TensorView lse = {};             // (B, T, Hq) statistics, optional: for the backward
  int64_t query_begin = 0;         // index of query 0 among the keys, T + query_begin <= S
  int64_t window = 0;              // 0: unlimited
  double scale = 0;                // 0: hd^(-1/2)
};
void attention_forward(const Context& ctx, const AttentionForward& args);

struct AttentionBackward {
  ConstTensorView dy = {};  // (B, T, Hq, hd)
  ConstTensorView q = {};   // as in the forward ...
  ConstTensorView k = {};
  ConstTensorView v = {};
  ConstTensorView doc_begin = {};
  ConstTensorView y = {};
  ConstTensorView lse = {};
  TensorView dq = {};  // (B, T, Hq, hd), overwritten
  TensorView dk = {};  // (B, S, Hkv, hd), overwritten
  TensorView dv = {};  // (B, S, Hkv, hd), overwritten
  int64_t query_begin = 0;
  int64_t window = 0;
  double scale = 0;
};
void attention_backward(const Context& ctx, const AttentionBackward& args);

}  // namespace sluice
