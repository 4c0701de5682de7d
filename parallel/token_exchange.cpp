// X experts, n ranks, D row size
#include "parallel/token_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/device_memory.h"
#include "kernels/elementwise/elementwise.h"

namespace sluice {
namespace {

int64_t sum(std::span<const int64_t> values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

// How many rows go from each rank to each, and the sums that place them.
class Loads {
 public:
  Loads(std::span<const int32_t> counts, int ranks)
      : counts_(counts),
        ranks_(ranks),
        experts_(int64_t(counts.size()) / ranks),
        between_(ranks * ranks, 0) {
    for (int source = 0; source < ranks; ++source) {
      for (int64_t e = 0; e < experts_; ++e) {
        SLUICE_CHECK(count(source, e) >= 0, "rank ", source, " has ", count(source, e),
                     " rows for expert ", e);
        between_[source * ranks + e / local_experts()] += count(source, e);
      }
    }
  }
  int64_t local_experts() const { return experts_ / ranks_; }
  int64_t count(int source, int64_t expert) const { return counts_[source * experts_ + expert]; }
  int64_t between(int source, int target) const { return between_[source * ranks_ + target]; }
  int64_t total() const { return sum(between_); }
  // Arrivals at `target` that come before those from `source`; source = ranks: all of them.
  int64_t arrivals_before(int source, int target) const {
    int64_t rows = 0;
    for (int other = 0; other < source; ++other) rows += between(other, target);
    return rows;
  }
  int64_t most_arrivals() const {
    int64_t most = 0;
    for (int target = 0; target < ranks_; ++target) {
      most = std::max(most, arrivals_before(ranks_, target));
    }
    return most;
  }

 private:
  std::span<const int32_t> counts_;
  int ranks_;
  int64_t experts_;
  std::vector<int64_t> between_;  // (source, target)
};

// [begin, begin + rows) cut to the window, as an offset into it and a length.
Slice overlap(int64_t begin, int64_t rows, const Slice& window) {
  const int64_t first = std::clamp(begin, window.begin, window.end);
  const int64_t last = std::clamp(begin + rows, window.begin, window.end);
  return {first, last};
}

// What `rank` sends while every rank takes the arrivals in `window`.
void plan_departure(const Loads& loads, int ranks, int rank, const Slice& window,
                    TokenRound& round) {
  int64_t sorted = 0;  // first sorted row that goes to `target`
  int64_t packed = 0;
  for (int target = 0; target < ranks; ++target) {
    const int64_t arrival = loads.arrivals_before(rank, target);
    const Slice taken = overlap(arrival, loads.between(rank, target), window);
    round.outgoing.push_back(taken.size());
    if (taken.size() > 0) {
      round.packing.push_back({sorted + taken.begin - arrival, packed, taken.size()});
    }
    sorted += loads.between(rank, target);
    packed += taken.size();
  }
}

// What `rank` takes: arrivals in `window`, which are sorted by source, then by expert.
void plan_arrival(const Loads& loads, int ranks, int rank, const Slice& window, TokenRound& round) {
  const int64_t local = loads.local_experts();
  std::vector<std::vector<Slice>> of_expert(local);
  int64_t arrival = 0;
  for (int source = 0; source < ranks; ++source) {
    round.incoming.push_back(overlap(arrival, loads.between(source, rank), window).size());
    for (int64_t e = 0; e < local; ++e) {
      const int64_t rows = loads.count(source, rank * local + e);
      const Slice taken = overlap(arrival, rows, window);
      if (taken.size() > 0) of_expert[e].push_back(taken);
      arrival += rows;
    }
  }
  int64_t grouped = 0;
  round.offsets.push_back(0);
  for (const std::vector<Slice>& slices : of_expert) {
    for (const Slice& slice : slices) {
      round.grouping.push_back({slice.begin - window.begin, grouped, slice.size()});
      grouped += slice.size();
    }
    round.offsets.push_back(grouped);
  }
}

std::vector<RowBlock> reversed(std::vector<RowBlock> blocks) {
  for (RowBlock& block : blocks) std::swap(block.from, block.to);
  return blocks;
}

void copy_blocks(const Context& ctx, const std::vector<RowBlock>& blocks, const TensorView& from,
                 const TensorView& to) {
  for (const RowBlock& block : blocks) {
    copy(ctx, from.row_range(block.from, block.rows), to.row_range(block.to, block.rows));
  }
}

int64_t room_for(double mean, double receive_factor, int ranks) {
  return std::max<int64_t>(1, int64_t(std::ceil(mean * std::min(receive_factor, double(ranks)))));
}

}  // namespace

TokenRoutes route_tokens(std::span<const int32_t> counts, int ranks, int rank,
                         double receive_factor) {
  SLUICE_CHECK(ranks >= 1 && rank >= 0 && rank < ranks && counts.size() % (ranks * ranks) == 0,
               "counts (ranks, X) with X a multiple of ranks ", ranks, ", got ", counts.size(),
               " for rank ", rank);
  const Loads loads(counts, ranks);
  TokenRoutes routes;
  routes.room = room_for(double(loads.total()) / ranks, receive_factor, ranks);
  const int64_t most = std::max<int64_t>(1, loads.most_arrivals());
  for (int64_t begin = 0; begin < most; begin += routes.room) {
    const Slice window{begin, begin + routes.room};
    TokenRound& round = routes.rounds.emplace_back();
    plan_departure(loads, ranks, rank, window, round);
    plan_arrival(loads, ranks, rank, window, round);
  }
  return routes;
}

std::vector<int32_t> even_load(int64_t entries, int ranks, int64_t experts) {
  const int64_t local = experts / ranks;
  std::vector<int32_t> counts(ranks * experts);
  for (int source = 0; source < ranks; ++source) {
    for (int64_t i = 0; i < experts; ++i) {
      // Every source starts with its own experts: what does not divide goes elsewhere from each.
      const int64_t e = (source * local + i) % experts;
      counts[source * experts + e] = int32_t((i + 1) * entries / experts - i * entries / experts);
    }
  }
  return counts;
}

TokenExchange::TokenExchange(Communicator& group, int64_t experts, double receive_factor)
    : group_(group), experts_(experts), receive_factor_(receive_factor) {
  SLUICE_CHECK(experts % group.size() == 0, experts, " experts over ", group.size(), " ranks");
  SLUICE_CHECK(receive_factor >= 1, "receive_factor is at least 1, got ", receive_factor);
}

Event TokenExchange::begin_counts(const ConstTensorView& counts, const TensorView& all) const {
  expect("counts", counts, {experts_}, DType::i32, counts.device);
  expect("all", all, {group_.size(), experts_}, DType::i32, counts.device);
  return group_.all_gather(counts, all);
}

TokenRoutes TokenExchange::routes(const Context& ctx, const ConstTensorView& all,
                                  int64_t entries) const {
  expect("all", all, {group_.size(), experts_}, DType::i32, ctx.device);
  if (ctx.counting()) {
    const std::vector<int32_t> counts = even_load(entries, group_.size(), experts_);
    return route_tokens(counts, group_.size(), group_.rank(), receive_factor_);
  }
  SLUICE_CHECK(all.packed(), "counts of all ranks are packed");
  std::vector<int32_t> counts(all.numel());
  copy_bytes(counts.data(), kCpu, all.data, ctx.device, counts.size() * sizeof(int32_t),
             ctx.stream);
  ctx.stream.sync();
  return route_tokens(counts, group_.size(), group_.rank(), receive_factor_);
}

Event TokenExchange::exchange(const TensorView& outgoing, const std::vector<int64_t>& to,
                              const TensorView& incoming, const std::vector<int64_t>& from) const {
  const auto elements = [&](std::vector<int64_t> rows) {
    for (int64_t& count : rows) count *= outgoing.dim(1);
    return rows;
  };
  return group_.all_to_all_v(outgoing.row_range(0, sum(to)), elements(to),
                             incoming.row_range(0, sum(from)), elements(from));
}

TokenExchange::Ticket TokenExchange::begin_dispatch(const Context& ctx, const TokenRoutes& routes,
                                                    int64_t round_index, const TensorView& rows,
                                                    const TensorView& grouped) const {
  const TokenRound& round = routes.rounds[round_index];
  TensorView packed = rows;
  if (may_overflow()) {
    const TensorView buffer = ctx.scratch->alloc(rows.dims, rows.dtype);
    if (routes.rounds.size() > 1) {
      copy_blocks(ctx, round.packing, rows, buffer);
      packed = buffer;
    }
  }
  // One expert: the order of arrival is the order wanted.
  const bool direct = local_experts() == 1;
  const TensorView arrived = direct ? grouped : ctx.scratch->alloc(grouped.dims, grouped.dtype);
  Ticket ticket{.event = exchange(packed, round.outgoing, arrived, round.incoming),
                .from = arrived,
                .to = grouped,
                .blocks = {}};
  if (!direct) ticket.blocks = round.grouping;
  return ticket;
}

TokenExchange::Ticket TokenExchange::begin_return(const Context& ctx, const TokenRoutes& routes,
                                                  int64_t round_index, const TensorView& grouped,
                                                  const TensorView& rows) const {
  const TokenRound& round = routes.rounds[round_index];
  TensorView leaving = grouped;
  if (local_experts() > 1) {
    leaving = ctx.scratch->alloc(grouped.dims, grouped.dtype);
    copy_blocks(ctx, reversed(round.grouping), grouped, leaving);
  }
  const bool direct = routes.rounds.size() == 1;
  TensorView landed = rows;
  if (may_overflow()) {
    const TensorView buffer = ctx.scratch->alloc(rows.dims, rows.dtype);
    if (!direct) landed = buffer;
  }
  Ticket ticket{.event = exchange(leaving, round.incoming, landed, round.outgoing),
                .from = landed,
                .to = rows,
                .blocks = {}};
  if (!direct) ticket.blocks = reversed(round.packing);
  return ticket;
}

void TokenExchange::finish(const Context& ctx, const Ticket& ticket) const {
  ticket.event.order(ctx.stream);
  copy_blocks(ctx, ticket.blocks, ticket.from, ticket.to);
}

}  // namespace sluice
