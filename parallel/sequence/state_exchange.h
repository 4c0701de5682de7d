// What every sequence rank's tokens do to a recurrent state, known to all ranks: one all-gather of
// messages of fixed size, whatever the number of tokens. A message holds a state, then a
// transition: forward what the rank's tokens add and what they do to the state before them,
// backward a gradient of a state and no transition. Both are statistics: f32, or f64 in f64.
//
// Gathered, they are one matrix with a row per rank, whose columns kernels/state_passing folds in
// place, with ranks for its chunks.
#pragma once

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace sluice {

struct StateMessages {
  TensorView all = {};     // (ranks, elements of a message)
  int64_t state_size = 0;  // elements of a message before its transition

  // One rank's, packed: (1, state_size) and (1, transition's elements).
  TensorView state(int rank) const { return columns(rank, 1, 0, {state_size}).matrix(); }
  TensorView transition(int rank) const {
    return transitions(rank, 1, {all.dim(1) - state_size}).matrix();
  }
  // Those of ranks [first, first + count): (1, count, inner...), rows strided.
  TensorView states(int first, int count, std::initializer_list<int64_t> inner) const {
    return columns(first, count, 0, inner);
  }
  TensorView transitions(int first, int count, std::initializer_list<int64_t> inner) const {
    return columns(first, count, state_size, inner);
  }

 private:
  TensorView columns(int first, int count, int64_t begin,
                     std::initializer_list<int64_t> inner) const {
    return all.row_range(first, count).reshape({1, count, all.dim(1)}).columns(begin, inner);
  }
};

class StateExchange {
 public:
  // The group outlives the exchange.
  explicit StateExchange(Communicator& group) : group_(group) {}

  int rank() const { return group_.rank(); }
  int ranks() const { return group_.size(); }

  // Room for all messages, in scratch. The caller writes state(rank()) and transition(rank()).
  StateMessages allocate(const Context& ctx, int64_t state_size, int64_t transition_size,
                         DType dtype) const;

  struct Ticket {
    Event event;
  };
  Ticket begin(const StateMessages& messages) const;
  // What the stream does from now on finds every rank's message.
  void finish(const Context& ctx, const Ticket& ticket) const { ticket.event.order(ctx.stream); }

 private:
  Communicator& group_;
};

}  // namespace sluice
