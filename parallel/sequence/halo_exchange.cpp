// B batch, T tokens on this rank, C channels
#include "parallel/sequence/halo_exchange.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"

namespace sluice {
namespace {

// Rows [begin, end) of every (T, C) matrix of a (B, T, C) tensor, one after another.
class PackedRows {
 public:
  explicit PackedRows(const TensorView& packed) : packed_(packed) {}
  // Where the next `count` rows lie.
  TensorView next(int64_t count) {
    used_ += count;
    return packed_.row_range(used_ - count, count);
  }

 private:
  TensorView packed_;  // (rows, C)
  int64_t used_ = 0;
};

int64_t sum(const std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  return total;
}

std::vector<int64_t> times(std::vector<int64_t> counts, int64_t factor) {
  for (int64_t& count : counts) count *= factor;
  return counts;
}

}  // namespace

int64_t HaloExchange::window_begin(const std::vector<int64_t>& cuts, End end, int reader) const {
  return (end == End::row_end ? cuts.back() : cuts[reader]) - width_;
}

Slice HaloExchange::piece(const std::vector<int64_t>& cuts, End end, int reader, int owner) const {
  const int64_t window = window_begin(cuts, end, reader);
  const int64_t first = std::max(window, cuts[owner]);
  return {first, std::max(first, std::min(window + width_, cuts[owner + 1]))};
}

// Counts are tokens by rank, of all rows of the batch.
void HaloExchange::send(const Context& ctx, const TensorView& outgoing,
                        const std::vector<int64_t>& tokens_to,
                        const std::vector<int64_t>& tokens_from, int64_t channels,
                        Ticket& ticket) const {
  ticket.incoming = ctx.scratch->alloc({sum(tokens_from), channels}, outgoing.dtype);
  if (ranks() == 1 || width_ == 0) return;
  ticket.event = group_->all_to_all_v(
      outgoing.reshape({outgoing.numel()}), times(tokens_to, channels),
      ticket.incoming.reshape({ticket.incoming.numel()}), times(tokens_from, channels));
}

HaloExchange::Ticket HaloExchange::begin(const Context& ctx, const Rows& rows, const TensorView& x,
                                         End end) const {
  const auto [B, T, C] = x.shape<3>("x: (B, T, C)");
  SLUICE_CHECK(int(rows.cuts.size()) == ranks() + 1, ranks(), " ranks need ", ranks() + 1,
               " cuts of a row, got ", rows.cuts.size());
  std::vector<int64_t> to(ranks(), 0), from(ranks(), 0);
  for (int other = 0; other < ranks(); ++other) {
    if (other == rank()) continue;
    to[other] = B * piece(rows.cuts, end, other, rank()).size();
    from[other] = B * piece(rows.cuts, end, rank(), other).size();
  }
  const TensorView outgoing = ctx.scratch->alloc({sum(to), C}, x.dtype);
  PackedRows packed(outgoing);
  for (int reader = 0; reader < ranks(); ++reader) {
    if (to[reader] == 0) continue;
    const Slice tokens = piece(rows.cuts, end, reader, rank());
    for (int64_t b = 0; b < B; ++b) {
      copy(ctx, x.slice(b).row_range(tokens.begin - rows.begin, tokens.size()),
           packed.next(tokens.size()));
    }
  }
  Ticket ticket{.end = end, .cuts = rows.cuts, .own = x, .incoming = {}, .event = {}};
  send(ctx, outgoing, to, from, C, ticket);
  return ticket;
}

void HaloExchange::finish(const Context& ctx, const Ticket& ticket, const ConstTensorView& before,
                          const TensorView& halo) const {
  const auto [B, width, C] = halo.shape<3>("halo: (B, width, C)");
  SLUICE_CHECK(width == width_, "the halo is ", width_, " tokens wide, got ", to_string(halo.dims));
  const int64_t window = window_begin(ticket.cuts, ticket.end, rank());
  // Positions before the row: the last ones of `before` are the nearest.
  const int64_t missing = std::clamp<int64_t>(-window, 0, width);
  for (int64_t b = 0; b < B && missing > 0; ++b) {
    const TensorView rows = halo.slice(b).row_range(0, missing);
    if (before) copy(ctx, before.slice(b).row_range(width - missing, missing), rows);
    if (!before) zero(ctx, rows);
  }
  ticket.event.order(ctx.stream);
  PackedRows packed(ticket.incoming);
  for (int owner = 0; owner < ranks(); ++owner) {
    const Slice tokens = piece(ticket.cuts, ticket.end, rank(), owner);
    for (int64_t b = 0; b < B && tokens.size() > 0; ++b) {
      const TensorView source =
          owner == rank()
              ? ticket.own.slice(b).row_range(tokens.begin - ticket.cuts[owner], tokens.size())
              : packed.next(tokens.size());
      copy(ctx, source, halo.slice(b).row_range(tokens.begin - window, tokens.size()));
    }
  }
}

HaloExchange::Ticket HaloExchange::begin_backward(const Context& ctx, const Rows& rows,
                                                  const TensorView& dhalo,
                                                  const TensorView& dx) const {
  const auto [B, width, C] = dhalo.shape<3>("dhalo: (B, width, C)");
  const End end = End::shard_begin;
  std::vector<int64_t> to(ranks(), 0), from(ranks(), 0);
  for (int other = 0; other < ranks(); ++other) {
    to[other] = B * piece(rows.cuts, end, rank(), other).size();
    from[other] = B * piece(rows.cuts, end, other, rank()).size();
  }
  const TensorView outgoing = ctx.scratch->alloc({sum(to), C}, dhalo.dtype);
  const int64_t window = window_begin(rows.cuts, end, rank());
  PackedRows packed(outgoing);
  for (int owner = 0; owner < ranks(); ++owner) {
    const Slice tokens = piece(rows.cuts, end, rank(), owner);
    for (int64_t b = 0; b < B && tokens.size() > 0; ++b) {
      copy(ctx, dhalo.slice(b).row_range(tokens.begin - window, tokens.size()),
           packed.next(tokens.size()));
    }
  }
  Ticket ticket{.end = end, .cuts = rows.cuts, .own = dx, .incoming = {}, .event = {}};
  send(ctx, outgoing, to, from, C, ticket);
  return ticket;
}

void HaloExchange::finish_backward(const Context& ctx, const Ticket& ticket) const {
  const TensorView& dx = ticket.own;
  const int64_t B = dx.dim(0);
  ticket.event.order(ctx.stream);
  PackedRows packed(ticket.incoming);
  for (int reader = 0; reader < ranks(); ++reader) {
    const Slice tokens = piece(ticket.cuts, ticket.end, reader, rank());
    for (int64_t b = 0; b < B && tokens.size() > 0; ++b) {
      add(ctx, packed.next(tokens.size()),
          dx.slice(b).row_range(tokens.begin - ticket.cuts[rank()], tokens.size()));
    }
  }
}

}  // namespace sluice
