// Attention as graphs of cuDNN's operations, forward with statistics and backward.
// B batch, T queries and keys, Hq query heads, Hkv key-value heads, hd head dim
#pragma once

#include <compare>

#include "kernels/attention/cudnn_graph.h"

namespace sluice::cuda::cudnn {

// What a plan is built for: sizes, and elements from one token to the next of each tensor.
struct AttentionProblem {
  int64_t B = 0, T = 0, Hq = 0, Hkv = 0, hd = 0;
  int64_t window = 0;  // 0: unlimited
  bool documents = true;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, y_stride = 0;
  int64_t dy_stride = 0, dq_stride = 0, dk_stride = 0, dv_stride = 0;  // of a backward
  int64_t doc_stride = 0;  // elements from one row to the next

  auto operator<=>(const AttentionProblem&) const = default;
};

// What a run is given the addresses of. Those of numbers are the host's.
enum TensorId : int64_t {
  kQ = 1,
  kK,
  kV,
  kY,
  kStats,     // (B, Hq, T) f32, packed: lse
  kDocBegin,  // (B, T) i32
  kDy,
  kDq,
  kDk,
  kDv,
  kDyY,     // (B, Hq, T) f32, scratch: dy . y
  kScale,   // f32
  kLowest,  // f32, what hidden scores become
  kWindow,  // i32
  kOne      // f32
};

// Writes kY and kStats. Query and key have the same index; a query sees itself.
Graph attention_forward_graph(const Library& library, const AttentionProblem& problem);

// Writes kDq, kDk and kDv in a fixed order of sums. cuDNN does that by way of ds in memory, bf16:
// the workspace of a plan has Hq T^2 of them for each row.
Graph attention_backward_graph(const Library& library, const AttentionProblem& problem);

}  // namespace sluice::cuda::cudnn
