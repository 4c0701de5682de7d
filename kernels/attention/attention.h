// Causal softmax attention with grouped queries, sliding window and document mask, blockwise:
// scores exist for one block of queries by one block of keys (Dao et al., "FlashAttention", 2022,
// algorithms 1 and 4; Ainslie et al., "GQA", 2023).
//
// Query t has index t + query_begin among the keys. It sees key s iff
//   s <= t + query_begin,   s >= doc_begin[t] + query_begin,
//   and, if window > 0,     s > t + query_begin - window
// doc_begin does not decrease along a row: blocks of keys before it are skipped. Keys that no query
// sees get zero gradients.
//   lse[t] = log sum_s exp(scale q[t] . k[s])
//   p[t,s] = exp(scale q[t] . k[s] - lse[t]);   y[t] = sum_s p[t,s] v[s]
// Query head h reads key-value head h * Hkv / Hq.
//
// Backward (recomputing p):  dv[s] = sum p dy[t];  dp = dy[t] . v[s];  ds = p (dp - dy[t] . y[t]);
//   dq[t] = scale sum_s ds k[s];  dk[s] = scale sum_t ds q[t]. A fixed order of sums.
//
// Keys in blocks. query_begin may be any number, so the keys may be any block of those of a row:
// with query_begin >= S all of them lie before the queries, with query_begin < 0 some after. A
// query that sees no key of the block has y = 0 and lse = -infinity. attention_merge joins the
// results over two blocks into that over both. The backward needs no merge: given the *final* y and
// lse (and their dy), one call per block yields that block's dk and dv and its share of dq.
#pragma once

#include <span>
#include <string>

#include "kernels/core/context.h"

namespace sluice {

// On a GPU: our own kernels; or cuDNN's, where the library is there and takes the arguments, else
// our own. On the CPU all the same.
enum class AttentionBackend : uint8_t { own, cudnn };
std::span<const char* const> enum_names(AttentionBackend);

struct AttentionForward {
  ConstTensorView q = {};          // (B, T, Hq, hd)
  ConstTensorView k = {};          // (B, S, Hkv, hd)
  ConstTensorView v = {};          // (B, S, Hkv, hd)
  ConstTensorView doc_begin = {};  // (B, T) i32, relative to query 0
  TensorView y = {};               // (B, T, Hq, hd)
  TensorView lse = {};             // (B, T, Hq) statistics, optional: for the backward
  int64_t query_begin = 0;         // index of query 0 among the keys
  int64_t window = 0;              // 0: unlimited
  double scale = 0;                // 0: hd^(-1/2)
  AttentionBackend backend = AttentionBackend::own;
  // A promise that doc_begin hides nothing: cuDNN's kernels need not look. (Ours hardly gain.)
  bool one_document = false;
};
void attention_forward(const Context& ctx, const AttentionForward& args);

//   both = log(exp(lse) + exp(part_lse));   lse = both
//   y = exp(lse - both) y + exp(part_lse - both) part_y
// A block that a query does not see (lse -infinity) changes nothing of the other's bits.
struct AttentionMerge {
  ConstTensorView part_y = {};    // (B, T, Hq, hd), over other keys than y
  ConstTensorView part_lse = {};  // (B, T, Hq) statistics
  TensorView y = {};              // (B, T, Hq, hd), updated
  TensorView lse = {};            // (B, T, Hq) statistics, updated
};
void attention_merge(const Context& ctx, const AttentionMerge& args);

struct AttentionBackward {
  ConstTensorView dy = {};  // (B, T, Hq, hd)
  ConstTensorView q = {};   // as in the forward ...
  ConstTensorView k = {};
  ConstTensorView v = {};
  ConstTensorView doc_begin = {};
  ConstTensorView y = {};
  ConstTensorView lse = {};
  TensorView dq = {};  // (B, T, Hq, hd), overwritten, or added to
  TensorView dk = {};  // (B, S, Hkv, hd), overwritten
  TensorView dv = {};  // (B, S, Hkv, hd), overwritten
  int64_t query_begin = 0;
  int64_t window = 0;
  double scale = 0;
  AttentionBackend backend = AttentionBackend::own;
  bool one_document = false;
  bool add_to_dq = false;  // dq holds the shares of other blocks of keys
};
void attention_backward(const Context& ctx, const AttentionBackward& args);

// What a device runs these with, for a log: cuDNN, or what keeps it or the tensor cores away. Empty
// where our own fast kernels, or the CPU's, run as asked for. The views need no memory.
std::string describe_kernels(Device device, const AttentionForward& forward,
                             const AttentionBackward& backward);

}  // namespace sluice
