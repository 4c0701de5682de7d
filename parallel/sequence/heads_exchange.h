// Tokens for columns: from all columns (heads) of one rank's tokens to some columns of all tokens,
// and back, by one all-to-all each way. Attention between the two runs on whole rows.
//
// Every rank is given `shares[rank]`: ranges of the columns of a row, side by side in its new row
// of W columns (the same W on every rank). A range may be given to several ranks (key-value heads
// when there are more ranks than heads); on the way back what these ranks hold of it is summed by
// each token's owner, in rank order: it is then a gradient.
//
// Bytes that a rank with T of a row's S tokens sends, for B rows and elements of e bytes:
//   to_columns  (c - 1) B T W e          to_tokens  B (S - T) W e
// and receives: the one of the other direction.
#pragma once

#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/rows.h"
#include "parallel/communicator.h"

namespace sluice {

struct ColumnRange {
  int64_t begin = 0;
  int64_t width = 0;
  friend bool operator==(const ColumnRange& a, const ColumnRange& b) = default;
};

class HeadsExchange {
 public:
  // Every column of a row lies in some share; ranges of two ranks are the same or lie apart.
  HeadsExchange(Communicator& group, int64_t columns, std::vector<std::vector<ColumnRange>> shares);

  int64_t columns() const { return columns_; }            // of a row before
  int64_t share_columns() const { return share_width_; }  // W

  // An exchange under way. Its buffers lie in ctx.scratch, from begin_* on: they are released after
  // finish; the tensors given are not touched before.
  struct Ticket {
    Event event;
    TensorView to;
    TensorView incoming;  // (elements), rank after rank; none: it arrives in `to` itself
  };

  // tokens (B, T, columns) -> shared (B, row_tokens, W), packed.
  Ticket begin_to_columns(const Context& ctx, const Rows& rows, const ConstTensorView& tokens,
                          const TensorView& shared) const;
  void finish_to_columns(const Context& ctx, const Rows& rows, const Ticket& ticket) const;

  // shared (B, row_tokens, W), packed -> tokens (B, T, columns).
  Ticket begin_to_tokens(const Context& ctx, const Rows& rows, const ConstTensorView& shared,
                         const TensorView& tokens) const;
  void finish_to_tokens(const Context& ctx, const Rows& rows, const Ticket& ticket) const;

 private:
  struct Share {
    ColumnRange range;
    int64_t at = 0;         // where it begins in the rank's row of W columns
    bool repeated = false;  // an earlier rank has the same range
  };
  void check(const Rows& rows, const ConstTensorView& tokens, const ConstTensorView& shared) const;

  Communicator& group_;
  int64_t columns_;
  int64_t share_width_ = 0;
  std::vector<std::vector<Share>> shares_;  // by rank
};

}  // namespace sluice
