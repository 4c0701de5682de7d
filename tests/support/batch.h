// Rows and tokens for tests of layers and models, on one rank.
#pragma once

#include <vector>

#include "kernels/core/rows.h"
#include "tests/support/tensors.h"

namespace sluice::test {

// B rows of T tokens whose documents start at `starts[b]` (and at 0).
class TestRows {
 public:
  TestRows(int64_t B, int64_t T, const std::vector<std::vector<int64_t>>& starts = {})
      : doc_begin_(documents(B, T, starts)), positions_({B, T}, DType::i32) {
    for (int64_t i = 0; i < B * T; ++i) positions_.set(i, double(i % T) - doc_begin_.get(i));
    rows_ = Rows{.first_row = 0,
                 .rows = B,
                 .step_rows = B,
                 .row_tokens = T,
                 .begin = 0,
                 .tokens = T,
                 .doc_begin = doc_begin_,
                 .local_doc_begin = doc_begin_,
                 .positions = positions_,
                 .cuts = {0, T}};
  }
  operator const Rows&() const { return rows_; }
  Rows& rows() { return rows_; }

 private:
  Tensor doc_begin_, positions_;
  Rows rows_;
};

}  // namespace sluice::test
