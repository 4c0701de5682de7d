// What a layer may know of the batch beside its tensors. Only tokens are sharded over sequence
// ranks: every rank holds each row's whole list of document starts and everybody's cuts, so resets,
// halo masks and remote keys' documents are local knowledge and no reset flag ever travels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/tensor.h"

namespace sluice {

struct Rows {
  int64_t first_row = 0;   // global index of row 0 in the step
  int64_t rows = 0;        // B
  int64_t step_rows = 1;   // rows of the whole step, world-wide: what means over rows divide by
  int64_t row_tokens = 0;  // tokens of a whole row, over all sequence ranks
  int64_t begin = 0;       // position in the row of this rank's first token
  int64_t tokens = 0;      // T, tokens of a row on this rank

  // (B, row_tokens) i32. Token s is visible to t iff doc_begin[t] <= s <= t. Negative where the
  // document began in an earlier row.
  ConstTensorView doc_begin = {};
  // (B, T) i32: doc_begin of this rank's tokens minus `begin`, the form operators take.
  ConstTensorView local_doc_begin = {};
  // (B, T) i32: index of the token in its document.
  ConstTensorView positions = {};
  // First token of every sequence rank, and row_tokens last.
  std::vector<int64_t> cuts = {};
};

}  // namespace sluice
