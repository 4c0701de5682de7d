// The experts of all ranks of an ep group, seen from one of them: rows sorted by expert go to the
// experts' ranks, through the experts, and come back to their places: as many as there are
// (parallel/token_exchange), or with a capacity in fixed slots (parallel/slot_exchange).
//
// Kept for the backward: what arrived in the first round, and its projection. Further rounds, which
// only an overloaded rank needs, are dispatched again.
#pragma once

#include <functional>
#include <vector>

#include "layers/ffn/experts.h"
#include "parallel/slot_exchange.h"
#include "parallel/token_exchange.h"

namespace sluice {

class DistributedExperts {
 public:
  // `experts`: those of this rank, of the group's X.
  DistributedExperts(const Experts& experts, Communicator& group, int64_t num_experts,
                     double receive_factor);

  struct Tape {
    TokenRoutes routes;
    SlotExchange::Route slots;  // instead, if slots.slots > 0
    TensorView rows;            // (room, D) of the first round, grouped by expert
    TensorView up;              // (room, U)
  };

  // counts (X) i32 of this rank's rows -> all (n, X) i32, before one of the routes.
  Event begin_counts(const ConstTensorView& counts, const TensorView& all) const {
    return exchange_.begin_counts(counts, all);
  }
  // For `entries` rows; the host reads the counts.
  void route(const Context& ctx, const ConstTensorView& all, int64_t entries, Tape& tape) const {
    tape.routes = exchange_.routes(ctx, all, entries);
  }
  // For at most `slots` rows of an expert, on any rank; see SlotExchange::route.
  void route_slots(const Context& ctx, int64_t slots, const ConstTensorView& offsets,
                   const ConstTensorView& counts, const ConstTensorView& all, Tape& tape) const {
    tape.slots = slots_.route(ctx, slots, offsets, counts, all);
  }

  // Both call `meanwhile` once, while the first round's rows travel.
  //
  // rows (entries, D) sorted by expert -> out (entries, D). The tape has its routes.
  void forward(const Context& ctx, const TensorView& rows, const TensorView& out, Tape& tape,
               const std::function<void()>& meanwhile) const;
  // gradient (entries, D): of out, then of rows. Adds to the gradients of the experts here.
  // sort_rows(view (entries, D)) writes the rows of the forward again, for further rounds.
  void backward(const Context& ctx, const TensorView& gradient, const Tape& tape,
                const std::function<void(const TensorView&)>& sort_rows,
                const std::function<void()>& meanwhile) const;

  // Without a capacity: from a rank's all_to_all_v traffic of a step under an even load to the most
  // that any load causes: all its rows leave, all rows of all others come to it and go back, in as
  // many rounds as there are ranks; and the rows of further rounds come once more in the backward.
  static Traffic worst_traffic(const Traffic& even, int ranks);

 private:
  TensorView offsets_of(const Context& ctx, const TokenRound& round) const;
  void forward_in_slots(const Context& ctx, const TensorView& rows, const TensorView& out,
                        Tape& tape, const std::function<void()>& meanwhile) const;
  void backward_in_slots(const Context& ctx, const TensorView& gradient, const Tape& tape,
                         const std::function<void()>& meanwhile) const;

  const Experts& experts_;
  TokenExchange exchange_;
  SlotExchange slots_;
};

}  // namespace sluice
