// The CPU side of selective_scan, as its dispatcher sees it. Work is cut into (row b, block of
// channels): a function of the shape alone.
#pragma once

#include <algorithm>

#include "kernels/selective_scan/selective_scan.h"

namespace sluice::cpu {

inline constexpr int64_t kScanBlock = 64;  // channels

constexpr int64_t scan_blocks(int64_t E) { return (E + kScanBlock - 1) / kScanBlock; }

// Partial sums of the backward, added up in a fixed order by reduce_scan_partials.
struct ScanPartials {
  TensorView dB = {};          // (scan_blocks(E), B * T, N): over the channels of a block
  TensorView dC = {};          // (scan_blocks(E), B * T, N)
  TensorView parameters = {};  // (B, E, N + 2): dA_log, then ddt_bias and dD, over a row's tokens
};

// The reference.
template <class T>
void selective_scan_forward(const SelectiveScanForward& args);
template <class T>
void selective_scan_backward(const SelectiveScanBackward& args, const ScanPartials& partials);
template <class T>
void selective_scan_fold(const SelectiveScanFold& args);
template <class T>
void selective_scan_reverse_fold(const SelectiveScanReverseFold& args);
template <class T>
void selective_scan_decay(const SelectiveScanDecay& args);
template <class T>
void selective_scan_step(const SelectiveScanStep& args);

template <class T>
void reduce_scan_partials(const SelectiveScanBackward& args, const ScanPartials& partials);

// The fast float path.
void selective_scan_forward_simd(const SelectiveScanForward& args);
void selective_scan_backward_simd(const SelectiveScanBackward& args, const ScanPartials& partials);
void selective_scan_fold_simd(const SelectiveScanFold& args);
void selective_scan_reverse_fold_simd(const SelectiveScanReverseFold& args);

// First token of the row's last document in this shard: what the fold depends on.
inline int64_t last_document(const ConstTensorView& doc_begin, int64_t b) {
  return std::max<int64_t>(0, doc_begin.row<int32_t>(b)[doc_begin.dim(1) - 1]);
}
// First token that starts a document, or the number of tokens: what the state before the row
// reaches.
inline int64_t first_start(const ConstTensorView& doc_begin, int64_t b) {
  const int32_t* const begin = doc_begin.row<int32_t>(b);
  int64_t t = 0;
  while (t < doc_begin.dim(1) && begin[t] != t) ++t;
  return t;
}

}  // namespace sluice::cpu
