#include "trainer/verify/synthetic_rows.h"

#include <algorithm>

#include "kernels/core/rng.h"

namespace sluice {

namespace {

enum Kind { one_document, at_cuts, short_documents, any_length, kKinds };

// Whether a document starts at each token.
std::vector<bool> document_starts(Kind kind, const RngKey& key, int64_t tokens) {
  std::vector<bool> starts(tokens, false);
  const auto draw = [&](int64_t t, uint64_t bound) {
    return random_below(key, uint64_t(t), bound);
  };
  for (int64_t t = 1; t < tokens; ++t) {
    if (kind == short_documents) starts[t] = t < tokens / 2 ? draw(t, 2) == 0 : draw(t, 9) == 0;
    if (kind == any_length) starts[t] = draw(t, 8) == 0;
  }
  if (kind == at_cuts) {
    for (const int64_t ranks : {2, 4, 8}) {
      if (ranks > tokens) continue;
      for (const int64_t cut : sequence_cuts(tokens, ranks)) {
        if (cut < tokens && draw(cut, 3) != 0) starts[cut] = true;
      }
    }
  }
  starts[0] = true;
  return starts;
}

}  // namespace

Batch::Row SyntheticRows::row(int64_t step, int64_t index) const {
  const RngKey tokens{.seed = seed, .stream = uint64_t(2 * (step * 1'000'000 + index))};
  const RngKey documents{.seed = seed, .stream = tokens.stream + 1};
  const Kind kind = Kind(index % kKinds);
  const std::vector<bool> starts = document_starts(kind, documents, row_tokens);
  // Where the row's first document began.
  const int64_t first = carries && kind == one_document ? -step * row_tokens : 0;
  Batch::Row row;
  for (int64_t t = 0; t < row_tokens; ++t) {
    row.tokens.push_back(int32_t(random_below(tokens, uint64_t(t), uint64_t(vocab_size))));
    if (t == 0) {
      row.doc_begin.push_back(int32_t(first));
    } else {
      row.doc_begin.push_back(starts[t] ? int32_t(t) : row.doc_begin.back());
    }
  }
  for (int64_t t = 0; t < row_tokens; ++t) {
    const bool last = t + 1 == row_tokens || starts[t + 1];
    row.targets.push_back(last ? -1 : row.tokens[t + 1]);
  }
  return row;
}

Batch SyntheticRows::batch(int64_t step, int64_t first_row, int64_t rows,
                           const SequenceShard& shard) const {
  Batch batch(first_row, rows, row_tokens, shard);
  for (int64_t i = 0; i < rows; ++i) batch.set_row(i, row(step, first_row + i));
  return batch;
}

int64_t SyntheticRows::count_targets(int64_t step, int64_t rows) const {
  int64_t targets = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const std::vector<int32_t> row_targets = row(step, i).targets;
    targets += std::count_if(row_targets.begin(), row_targets.end(),
                             [](int32_t target) { return target >= 0; });
  }
  return targets;
}

}  // namespace sluice
