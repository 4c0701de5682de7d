// Tokens on their way to their experts and back. X experts over n ranks: rank q holds the experts
// [q X/n, (q + 1) X/n). A rank's tokens are rows sorted by expert, so what it sends to another rank
// lies together. Nothing is dropped:
//
//   counts      everybody learns how many rows every rank has for every expert (n X numbers)
//   dispatch    rows go to their experts' ranks and are grouped by expert there, by source within
//   return      rows of the same places go back to where they came from
//
// The backward pass dispatches gradients of the results and returns gradients of the tokens, over
// the same routes.
//
// A receive buffer has room for `receive_factor` times the mean load of a rank. What does not fit
// travels in further rounds: a rank takes its arrivals, source after source, a buffer at a time.
// The number of rounds follows from the counts, so that all ranks know it.
//
// The counts are read by the host, which waits for a GPU's, once a layer and micro-batch. In
// counting mode there are none: the load is taken as even, which is the expected traffic. Buffers
// have their bound in either mode.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace sluice {

// Rows [from, from + rows) of one matrix that are rows [to, to + rows) of another.
struct RowBlock {
  int64_t from = 0;
  int64_t to = 0;
  int64_t rows = 0;
  friend bool operator==(const RowBlock& a, const RowBlock& b) = default;
};

// One round of an exchange, as one rank sees it.
struct TokenRound {
  std::vector<int64_t> outgoing;   // rows that go to every rank
  std::vector<int64_t> incoming;   // rows that come from every rank
  std::vector<RowBlock> packing;   // from the sorted rows into the order they leave in
  std::vector<RowBlock> grouping;  // from the order of arrival into groups of one expert
  std::vector<int64_t> offsets;    // (X/n + 1) first row of every group
};

struct TokenRoutes {
  int64_t room = 0;                // rows of a receive buffer, the same on every rank
  std::vector<TokenRound> rounds;  // at least one; as many on every rank
};

// counts (ranks, X): rows that every rank has for every expert.
TokenRoutes route_tokens(std::span<const int32_t> counts, int ranks, int rank,
                         double receive_factor);

// The load that counting mode assumes: (ranks, X), `entries` rows from every rank and to every
// rank.
std::vector<int32_t> even_load(int64_t entries, int ranks, int64_t experts);

class TokenExchange {
 public:
  TokenExchange(Communicator& group, int64_t experts, double receive_factor);

  int64_t local_experts() const { return experts_ / group_.size(); }
  // Some load may need more than one round: then buffers for it must be there.
  bool may_overflow() const { return receive_factor_ < group_.size(); }

  // counts (X) i32 of this rank's rows -> all (n, X) i32, whose event the stream is ordered after
  // before routes().
  Event begin_counts(const ConstTensorView& counts, const TensorView& all) const;
  // `entries`: of this rank, for counting mode.
  TokenRoutes routes(const Context& ctx, const ConstTensorView& all, int64_t entries) const;

  // An exchange under way. Its buffers lie in ctx.scratch, in the caller's scope.
  struct Ticket {
    Event event;
    TensorView from, to;           // what is left to copy, by `blocks`
    std::vector<RowBlock> blocks;  // none: it arrives where it belongs
  };
  // rows (entries, D) -> grouped (room, D), filled up to the round's offsets[X/n]. Neither is
  // touched before finish().
  Ticket begin_dispatch(const Context& ctx, const TokenRoutes& routes, int64_t round,
                        const TensorView& rows, const TensorView& grouped) const;
  // grouped (room, D) -> the round's rows of `rows` (entries, D); others are left alone.
  Ticket begin_return(const Context& ctx, const TokenRoutes& routes, int64_t round,
                      const TensorView& grouped, const TensorView& rows) const;
  void finish(const Context& ctx, const Ticket& ticket) const;

 private:
  Event exchange(const TensorView& outgoing, const std::vector<int64_t>& to,
                 const TensorView& incoming, const std::vector<int64_t>& from) const;

  Communicator& group_;
  int64_t experts_;
  double receive_factor_;
};

}  // namespace sluice
