// Rows of tokens that `verify` trains on: packed with documents of all kinds, and a function of
// (seed, step, row) alone, so that every layout sees the same.
#pragma once

#include <cstdint>

#include "data/batch.h"

namespace sluice {

struct SyntheticRows {
  uint64_t seed = 1;
  int64_t row_tokens = 0;
  int64_t vocab_size = 0;
  bool carries = false;  // a document that fills its row goes on in the same row of the next step

  // In turn: one document that fills the row; documents that start where sequence shards of 2, 4
  // and 8 ranks do; documents of one token, in part; documents of any length.
  Batch::Row row(int64_t step, int64_t index) const;
  Batch batch(int64_t step, int64_t first_row, int64_t rows, const SequenceShard& shard) const;
  // Of rows [0, rows) of a step.
  int64_t count_targets(int64_t step, int64_t rows) const;
};

}  // namespace sluice
