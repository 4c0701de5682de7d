// Layouts for tests: ranks as threads with a mesh, and the part of a batch that each of them holds.
// Ranks share memory, so each pastes its part of a result into a tensor of the whole; the threads
// end before anybody reads it.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/core/rows.h"
#include "parallel/mesh.h"
#include "parallel/thread_communicator.h"
#include "tests/support/tensors.h"

namespace sluice::test {

// Runs `body` on one thread per rank of the mesh. What a rank throws is rethrown here.
inline void run_layout(const MeshShape& shape, const std::function<void(const Mesh&)>& body) {
  run_ranks(shape.world(), [&](Communicator& world) {
    const Mesh mesh(world, shape);
    body(mesh);
  });
}

// First token of each of `ranks` sequence ranks, and `row_tokens` last.
inline std::vector<int64_t> even_cuts(int64_t row_tokens, int ranks) {
  std::vector<int64_t> cuts;
  for (int rank = 0; rank < ranks; ++rank) cuts.push_back(slice_of(row_tokens, ranks, rank).begin);
  cuts.push_back(row_tokens);
  return cuts;
}

// What one rank holds of a batch: some of its rows, and of these the tokens between two cuts.
class ShardRows {
 public:
  ShardRows(const Rows& whole, Slice rows, const std::vector<int64_t>& cuts, int sequence_rank)
      : first_row_(rows.begin) {
    const int64_t B = rows.size(), row_tokens = whole.row_tokens;
    const int64_t begin = cuts[sequence_rank], T = cuts[sequence_rank + 1] - begin;
    doc_begin_ = Tensor({B, row_tokens}, DType::i32);
    local_doc_begin_ = Tensor({B, T}, DType::i32);
    positions_ = Tensor({B, T}, DType::i32);
    for (int64_t b = 0; b < B; ++b) {
      const int32_t* const starts = whole.doc_begin.row<int32_t>(rows.begin + b);
      for (int64_t t = 0; t < row_tokens; ++t) doc_begin_.set(b * row_tokens + t, starts[t]);
      for (int64_t t = 0; t < T; ++t) {
        const int64_t start = starts[begin + t];
        local_doc_begin_.set(b * T + t, double(start - begin));
        positions_.set(b * T + t, double(begin + t - start));
      }
    }
    rows_ = Rows{.first_row = whole.first_row + rows.begin,
                 .rows = B,
                 .step_rows = whole.step_rows,
                 .row_tokens = row_tokens,
                 .begin = begin,
                 .tokens = T,
                 .doc_begin = doc_begin_,
                 .local_doc_begin = local_doc_begin_,
                 .positions = positions_,
                 .cuts = cuts};
  }
  // Rows dealt to the dp ranks, tokens to the cp ranks, as the trainer does.
  ShardRows(const Rows& whole, const Mesh& mesh)
      : ShardRows(whole, slice_of(whole.rows, mesh.shape().dp, mesh.at().dp),
                  even_cuts(whole.row_tokens, mesh.shape().cp), mesh.at().cp) {}

  operator const Rows&() const { return rows_; }
  const Rows& rows() const { return rows_; }
  int64_t first_row() const { return first_row_; }  // of the whole batch's rows

  // This rank's part of a tensor (rows, row_tokens, ...) of the whole batch.
  Tensor cut(const Tensor& whole) const {
    Tensor part(part_dims(whole), whole.dtype());
    for_each_row(
        whole,
        [&](char* of_whole, char* of_part, size_t bytes) { std::memcpy(of_part, of_whole, bytes); },
        part);
    return part;
  }
  // The way back.
  void paste(const Tensor& part, const Tensor& whole) const {
    SLUICE_CHECK(part.dims() == part_dims(whole), "pasting ", to_string(part.dims()), " into ",
                 to_string(whole.dims()));
    for_each_row(
        whole,
        [&](char* of_whole, char* of_part, size_t bytes) { std::memcpy(of_whole, of_part, bytes); },
        part);
  }

 private:
  Dims part_dims(const Tensor& whole) const {
    Dims dims = whole.dims();
    dims.size[0] = rows_.rows;
    dims.size[1] = rows_.tokens;
    return dims;
  }
  template <class Body>
  void for_each_row(const Tensor& whole, const Body& body, const Tensor& part) const {
    const int64_t width = whole.numel() / (whole.dims()[0] * whole.dims()[1]);
    const size_t bytes = size_of(whole.dtype());
    SLUICE_CHECK(whole.view().packed() && part.view().packed(), "parts are cut of packed tensors");
    for (int64_t b = 0; b < rows_.rows; ++b) {
      const int64_t from = (first_row_ + b) * rows_.row_tokens + rows_.begin;
      body(static_cast<char*>(whole.view().data) + from * width * bytes,
           static_cast<char*>(part.view().data) + b * rows_.tokens * width * bytes,
           rows_.tokens * width * bytes);
    }
  }

  int64_t first_row_;
  Tensor doc_begin_, local_doc_begin_, positions_;
  Rows rows_;
};

// The sum over a group, for gradients of parameters.
inline Tensor sum_over(Communicator& group, const Tensor& part) {
  Tensor sum = part.clone();
  group.all_reduce(sum.view(), ReduceOp::sum).wait();
  return sum;
}

}  // namespace sluice::test
