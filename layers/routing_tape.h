// Which experts every token went to. A tape records a step on one layout, and then dictates the
// same choices on another, or is compared with the tape of another: top-k is discontinuous, so that
// in f32 a rounding error may send a token elsewhere, after which losses differ by more than
// rounding.
//
// One tape for all ranks of a process: they write and read at the same time. It holds one step
// (rows are numbered within a step); a replay of the forward records the same again.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/core/rows.h"

namespace sluice {

class RoutingTape {
 public:
  // From now on forwards take their choices from the tape. Weights still follow the logits.
  void dictate() { dictating_ = true; }
  bool dictating() const { return dictating_; }

  // Of the tokens in `rows`, in MoE branch `branch`; experts (B, T, k) i32, in host memory. read()
  // throws if the tape does not have them all.
  void write(int64_t branch, const Rows& rows, const ConstTensorView& experts);
  void read(int64_t branch, const Rows& rows, const TensorView& experts) const;

  struct Comparison {
    int64_t choices = 0;  // of the first tape
    int64_t flipped = 0;  // of these, experts that the token did not choose in the second tape
    std::string first;    // where the first of them is; empty: none
  };
  // When no rank writes. Throws if one tape has tokens that the other has not. The order of a
  // token's experts is free.
  static Comparison compare(const RoutingTape& tape, const RoutingTape& other);

 private:
  struct Row {
    int64_t k = 0;
    std::vector<int32_t> experts;  // (row_tokens, k); -1: not written
  };
  using Key = std::pair<int64_t, int64_t>;  // branch, global row

  mutable std::mutex mutex_;
  bool dictating_ = false;
  std::map<Key, Row> rows_;
};

}  // namespace sluice
