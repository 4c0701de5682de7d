#include "data/batch.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace sluice {

std::vector<int64_t> sequence_cuts(int64_t row_tokens, int64_t size) {
  SLUICE_CHECK(size > 0, "sequence ranks: ", size);
  if (row_tokens < size) {
    throw UsageError(concat("a row of ", row_tokens, " tokens cannot be cut for ", size,
                            " sequence ranks; lower parallel.cp or raise seq_len"));
  }
  std::vector<int64_t> cuts{0};
  for (int64_t rank = 0; rank < size; ++rank)
    cuts.push_back(cuts.back() + row_tokens / size + (rank < row_tokens % size ? 1 : 0));
  return cuts;
}

Batch::Batch(const Rows& shape, SequenceShard shard, bool allocate) : rows_(shape) {
  SLUICE_CHECK(rows_.rows > 0 && shard.rank >= 0 && shard.rank < shard.size, rows_.rows,
               " rows for sequence rank ", shard.rank, " of ", shard.size);
  rows_.cuts = sequence_cuts(rows_.row_tokens, shard.size);
  rows_.begin = rows_.cuts[size_t(shard.rank)];
  rows_.tokens = rows_.cuts[size_t(shard.rank) + 1] - rows_.begin;
  if (rows_.step_rows == 0) rows_.step_rows = rows_.rows;
  if (allocate) {
    const size_t local = size_t(rows_.rows * rows_.tokens);
    tokens_.resize(local);
    targets_.resize(local, -1);
    local_doc_begin_.resize(local);
    positions_.resize(local);
    doc_begin_.resize(size_t(rows_.rows * rows_.row_tokens));
  }
  const Dims dims{rows_.rows, rows_.tokens};
  rows_.doc_begin = ConstTensorView(doc_begin_.data(), {rows_.rows, rows_.row_tokens});
  rows_.local_doc_begin = ConstTensorView(local_doc_begin_.data(), dims);
  rows_.positions = ConstTensorView(positions_.data(), dims);
}

Batch::Batch(int64_t first_row, int64_t num_rows, int64_t row_tokens, SequenceShard shard,
             int64_t step_rows)
    : Batch({.first_row = first_row,
             .rows = num_rows,
             .step_rows = step_rows,
             .row_tokens = row_tokens},
            shard, true) {}

Batch Batch::planned(int64_t num_rows, int64_t row_tokens, SequenceShard shard, int64_t step_rows) {
  return {{.rows = num_rows, .step_rows = step_rows, .row_tokens = row_tokens}, shard, false};
}

ConstTensorView Batch::tokens() const {
  return ConstTensorView(tokens_.data(), {rows_.rows, rows_.tokens});
}

ConstTensorView Batch::targets() const {
  return ConstTensorView(targets_.data(), {rows_.rows, rows_.tokens});
}

void Batch::set_row(int64_t index, const Row& row) {
  SLUICE_CHECK(index >= 0 && index < rows_.rows && int64_t(row.tokens.size()) == rows_.row_tokens &&
                   row.targets.size() == row.tokens.size() &&
                   row.doc_begin.size() == row.tokens.size(),
               "row ", index, " of ", row.tokens.size(), " tokens");
  std::copy(row.doc_begin.begin(), row.doc_begin.end(),
            doc_begin_.begin() + index * rows_.row_tokens);
  for (int64_t t = 0; t < rows_.tokens; ++t) {
    const size_t from = size_t(rows_.begin + t);
    const size_t to = size_t(index * rows_.tokens + t);
    num_targets_ += int64_t(row.targets[from] >= 0) - int64_t(targets_[to] >= 0);
    tokens_[to] = row.tokens[from];
    targets_[to] = row.targets[from];
    local_doc_begin_[to] = row.doc_begin[from] - int32_t(rows_.begin);
    positions_[to] = int32_t(from) - row.doc_begin[from];
  }
}

}  // namespace sluice
