// The exchange of token_exchange.h where an expert takes at most so many rows of every rank (a
// capacity). On the wire each has that many places, whatever the load, and empty ones travel too:
// every pair of ranks exchanges as many rows, nobody reads counts on the host, plans are exact, and
// a step on GPUs can be one graph. Where they arrive, rows are put together: by expert, by source
// within, as there.
#pragma once

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace sluice {

class SlotExchange {
 public:
  SlotExchange(Communicator& group, int64_t experts) : group_(group), experts_(experts) {
    SLUICE_CHECK(experts % group.size() == 0, experts, " experts over ", group.size(), " ranks");
  }

  // What a forward and its backward share. n ranks, L experts on each.
  struct Route {
    int64_t slots = 0;            // places of an expert for each rank; the same on all ranks
    ConstTensorView own_begin;    // (1, X) i64: this rank's sorted rows
    ConstTensorView own_counts;   // (1, X) i32
    ConstTensorView here_counts;  // (n, L) i32: what arrives
    TensorView here_begin;        // (n, L) i64
    TensorView offsets;           // (L + 1) i64: groups of arrivals
  };
  // offsets (X + 1) i64 and counts (X) i32 of this rank's rows; all (n, X) i32: everybody's counts,
  // gathered. These three, and what is allocated in ctx.saved, must last as long as the route.
  Route route(const Context& ctx, int64_t slots, const ConstTensorView& offsets,
              const ConstTensorView& counts, const ConstTensorView& all) const;

  // Rows that can arrive.
  int64_t room(const Route& route) const { return experts_ * route.slots; }

  // An exchange under way. Its buffers lie in ctx.scratch, in the caller's scope.
  struct Ticket {
    Event event;
    TensorView landed;
  };
  // rows (entries, D) -> grouped (room, D), filled up to offsets[L].
  Ticket begin_dispatch(const Context& ctx, const Route& route, const ConstTensorView& rows) const;
  void finish_dispatch(const Context& ctx, const Route& route, const Ticket& ticket,
                       const TensorView& grouped) const;
  // grouped (room, D) -> the places in rows (entries, D) that they came from; others are left
  // alone.
  Ticket begin_return(const Context& ctx, const Route& route, const ConstTensorView& grouped) const;
  void finish_return(const Context& ctx, const Route& route, const Ticket& ticket,
                     const TensorView& rows) const;

 private:
  Ticket exchange(const Context& ctx, const TensorView& leaving) const;

  Communicator& group_;
  int64_t experts_;
};

}  // namespace sluice
