// B rows, T tokens on this rank, c ranks, W columns of a share
#include "parallel/sequence/heads_exchange.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"

namespace sluice {
namespace {

// `dims` elements of a flat tensor from `begin` on.
template <class View>
View piece_of(const View& flat, int64_t begin, const Dims& dims) {
  return flat.columns(begin, {dims.numel()}).reshape(dims);
}

// Tokens of a row on every rank.
std::vector<int64_t> tokens_of(const Rows& rows) {
  std::vector<int64_t> tokens;
  for (size_t rank = 0; rank + 1 < rows.cuts.size(); ++rank) {
    tokens.push_back(rows.cuts[rank + 1] - rows.cuts[rank]);
  }
  return tokens;
}

// Elements that go to, or come from, every rank.
std::vector<int64_t> counts_of(const std::vector<int64_t>& tokens, int64_t elements_a_token) {
  std::vector<int64_t> counts = tokens;
  for (int64_t& count : counts) count *= elements_a_token;
  return counts;
}

}  // namespace

HeadsExchange::HeadsExchange(Communicator& group, int64_t columns,
                             std::vector<std::vector<ColumnRange>> shares)
    : group_(group), columns_(columns) {
  SLUICE_CHECK(int(shares.size()) == group.size(), "one share a rank (", group.size(), "), got ",
               shares.size());
  std::vector<ColumnRange> given;
  int64_t covered = 0;
  for (const std::vector<ColumnRange>& ranges : shares) {
    std::vector<Share> share;
    int64_t width = 0;
    for (const ColumnRange& range : ranges) {
      const bool repeated = std::find(given.begin(), given.end(), range) != given.end();
      SLUICE_CHECK(range.begin >= 0 && range.width > 0 && range.begin + range.width <= columns,
                   "columns [", range.begin, ", ", range.begin + range.width, ") of ", columns);
      share.push_back({range, width, repeated});
      width += range.width;
      if (repeated) continue;
      for (const ColumnRange& other : given) {
        SLUICE_CHECK(
            range.begin >= other.begin + other.width || other.begin >= range.begin + range.width,
            "columns are shared in part: from ", range.begin, " and from ", other.begin);
      }
      given.push_back(range);
      covered += range.width;
    }
    SLUICE_CHECK(shares_.empty() || width == share_width_, "shares of ", share_width_, " and ",
                 width, " columns");
    share_width_ = width;
    shares_.push_back(std::move(share));
  }
  SLUICE_CHECK(covered == columns, "shares cover ", covered, " of ", columns, " columns");
}

void HeadsExchange::check(const Rows& rows, const ConstTensorView& tokens,
                          const ConstTensorView& shared) const {
  SLUICE_CHECK(int(rows.cuts.size()) == group_.size() + 1, "rows are cut for ",
               rows.cuts.size() - 1, " ranks, the group has ", group_.size());
  expect("tokens", tokens, {rows.rows, rows.tokens, columns_}, shared.dtype, shared.device);
  expect("shared", shared, {rows.rows, rows.row_tokens, share_width_}, tokens.dtype, tokens.device);
  SLUICE_CHECK(rows.tokens == rows.cuts[group_.rank() + 1] - rows.cuts[group_.rank()], "rank ",
               group_.rank(), " holds ", rows.tokens, " tokens of a row, which its cuts are not");
  SLUICE_CHECK(shared.packed(), "shared rows are packed");
}

HeadsExchange::Ticket HeadsExchange::begin_to_columns(const Context& ctx, const Rows& rows,
                                                      const ConstTensorView& tokens,
                                                      const TensorView& shared) const {
  check(rows, tokens, shared);
  const int64_t B = rows.rows, T = rows.tokens, W = share_width_;
  const TensorView outgoing = ctx.scratch->alloc({group_.size() * B * T * W}, tokens.dtype);
  for (int rank = 0; rank < group_.size(); ++rank) {
    const TensorView part = piece_of(outgoing, rank * B * T * W, {B, T, W});
    for (const Share& share : shares_[rank]) {
      copy(ctx, tokens.columns(share.range.begin, {share.range.width}),
           part.columns(share.at, {share.range.width}));
    }
  }
  Ticket ticket{.event = {}, .to = shared, .incoming = {}};
  const TensorView flat = shared.reshape({shared.numel()});
  // With one row, tokens of one rank after those of another are the row.
  if (B > 1) ticket.incoming = ctx.scratch->alloc(flat.dims, tokens.dtype);
  ticket.event =
      group_.all_to_all_v(outgoing, std::vector<int64_t>(group_.size(), B * T * W),
                          B > 1 ? ticket.incoming : flat, counts_of(tokens_of(rows), B * W));
  return ticket;
}

void HeadsExchange::finish_to_columns(const Context& ctx, const Rows& rows,
                                      const Ticket& ticket) const {
  ticket.event.order(ctx.stream);
  if (!ticket.incoming) return;
  for (int rank = 0; rank < group_.size(); ++rank) {
    const int64_t begin = rows.cuts[rank], T = rows.cuts[rank + 1] - begin;
    const TensorView part =
        piece_of(ticket.incoming, begin * rows.rows * share_width_, {rows.rows, T, share_width_});
    for (int64_t b = 0; b < rows.rows; ++b) {
      copy(ctx, part.slice(b), ticket.to.slice(b).row_range(begin, T));
    }
  }
}

HeadsExchange::Ticket HeadsExchange::begin_to_tokens(const Context& ctx, const Rows& rows,
                                                     const ConstTensorView& shared,
                                                     const TensorView& tokens) const {
  check(rows, tokens, shared);
  const int64_t B = rows.rows, T = rows.tokens, W = share_width_;
  ConstTensorView outgoing = shared.reshape({shared.numel()});
  if (B > 1) {
    const TensorView packed = ctx.scratch->alloc(outgoing.dims, shared.dtype);
    for (int rank = 0; rank < group_.size(); ++rank) {
      const int64_t begin = rows.cuts[rank], count = rows.cuts[rank + 1] - begin;
      const TensorView part = piece_of(packed, begin * B * W, {B, count, W});
      for (int64_t b = 0; b < B; ++b) {
        copy(ctx, shared.slice(b).row_range(begin, count), part.slice(b));
      }
    }
    outgoing = packed;
  }
  Ticket ticket{.event = {}, .to = tokens, .incoming = {}};
  ticket.incoming = ctx.scratch->alloc({group_.size() * B * T * W}, shared.dtype);
  ticket.event = group_.all_to_all_v(outgoing, counts_of(tokens_of(rows), B * W), ticket.incoming,
                                     std::vector<int64_t>(group_.size(), B * T * W));
  return ticket;
}

void HeadsExchange::finish_to_tokens(const Context& ctx, const Rows& rows,
                                     const Ticket& ticket) const {
  ticket.event.order(ctx.stream);
  const Dims dims{rows.rows, rows.tokens, share_width_};
  for (int rank = 0; rank < group_.size(); ++rank) {
    const TensorView part = piece_of(ticket.incoming, rank * dims.numel(), dims);
    for (const Share& share : shares_[rank]) {
      const TensorView from = part.columns(share.at, {share.range.width});
      const TensorView to = ticket.to.columns(share.range.begin, {share.range.width});
      share.repeated ? add(ctx, from, to) : copy(ctx, from, to);
    }
  }
}

}  // namespace sluice
