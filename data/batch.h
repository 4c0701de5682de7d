// What one forward pass reads: rows of tokens with their targets and document boundaries.
//
// B rows, T tokens of a row on this rank, R tokens of a whole row (R = T without sequence
// parallelism).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/rows.h"

namespace sluice {

// Which part of each row a rank holds.
struct SequenceShard {
  int64_t rank = 0;
  int64_t size = 1;
};

// First token of every sequence rank, and `row_tokens` last: the first (row_tokens mod size) ranks
// hold one token more. Throws UsageError for fewer tokens than ranks.
std::vector<int64_t> sequence_cuts(int64_t row_tokens, int64_t size);

// Owns its memory; the views point into it, so it moves but does not copy.
class Batch {
 public:
  // `step_rows`: rows of the whole step, world-wide; 0: these are all.
  Batch(int64_t first_row, int64_t num_rows, int64_t row_tokens, SequenceShard shard,
        int64_t step_rows = 0);
  // Shapes without memory, for counting runs.
  static Batch planned(int64_t num_rows, int64_t row_tokens, SequenceShard shard,
                       int64_t step_rows);
  Batch(Batch&&) = default;
  Batch& operator=(Batch&&) = default;
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  ConstTensorView tokens() const;   // (B, T) i32
  ConstTensorView targets() const;  // (B, T) i32: the next token of the document, -1 = none
  const Rows& rows() const { return rows_; }
  int64_t num_targets() const { return num_targets_; }  // of this batch on this rank

  // One whole row, before it is cut for the ranks. A token belongs to the document that begins at
  // doc_begin; positions count from there.
  struct Row {
    std::vector<int32_t> tokens;     // (R)
    std::vector<int32_t> targets;    // (R)
    std::vector<int32_t> doc_begin;  // (R)
  };
  void set_row(int64_t index, const Row& row);

 private:
  Batch(const Rows& shape, SequenceShard shard, bool allocate);

  std::vector<int32_t> tokens_;           // (B, T)
  std::vector<int32_t> targets_;          // (B, T)
  std::vector<int32_t> doc_begin_;        // (B, R)
  std::vector<int32_t> local_doc_begin_;  // (B, T)
  std::vector<int32_t> positions_;        // (B, T)
  Rows rows_;
  int64_t num_targets_ = 0;
};

}  // namespace sluice
