// D model, F hidden width, U width of the up projection
#include "layers/ffn/distributed_experts.h"

#include "kernels/core/device_memory.h"

namespace sluice {

DistributedExperts::DistributedExperts(const Experts& experts, Communicator& group,
                                       int64_t num_experts, double receive_factor)
    : experts_(experts),
      exchange_(group, num_experts, receive_factor),
      slots_(group, num_experts) {}

// (X + 1) i64, in scratch.
TensorView DistributedExperts::offsets_of(const Context& ctx, const TokenRound& round) const {
  const TensorView offsets = ctx.scratch->alloc({int64_t(round.offsets.size())}, DType::i64);
  if (ctx.counting()) return offsets;
  copy_bytes(offsets.data, ctx.device, round.offsets.data(), kCpu,
             round.offsets.size() * sizeof(int64_t), ctx.stream);
  return offsets;
}

// Rows of a group's length and no more: the rest of the buffers holds anything.
void DistributedExperts::forward_in_slots(const Context& ctx, const TensorView& rows,
                                          const TensorView& out, Tape& tape,
                                          const std::function<void()>& meanwhile) const {
  const DType dtype = rows.dtype;
  const int64_t room = slots_.room(tape.slots), D = rows.dim(1);
  tape.rows = ctx.saved->alloc({room, D}, dtype);
  tape.up = ctx.saved->alloc({room, experts_.up_width()}, dtype);
  const ArenaScope scope(*ctx.scratch);
  {
    const ArenaScope dispatch_scope(*ctx.scratch);
    const SlotExchange::Ticket ticket = slots_.begin_dispatch(ctx, tape.slots, rows);
    meanwhile();
    slots_.finish_dispatch(ctx, tape.slots, ticket, tape.rows);
  }
  const TensorView results = ctx.scratch->alloc({room, D}, dtype);
  {
    const ArenaScope experts_scope(*ctx.scratch);
    experts_.forward(ctx, {.rows = tape.rows,
                           .offsets = tape.slots.offsets,
                           .up = tape.up,
                           .hidden = ctx.scratch->alloc({room, experts_.hidden()}, dtype),
                           .out = results});
  }
  slots_.finish_return(ctx, tape.slots, slots_.begin_return(ctx, tape.slots, results), out);
}

void DistributedExperts::backward_in_slots(const Context& ctx, const TensorView& gradient,
                                           const Tape& tape,
                                           const std::function<void()>& meanwhile) const {
  const DType dtype = gradient.dtype;
  const int64_t room = slots_.room(tape.slots);
  const ArenaScope scope(*ctx.scratch);
  const TensorView dgrouped = ctx.scratch->alloc({room, gradient.dim(1)}, dtype);
  {
    const ArenaScope dispatch_scope(*ctx.scratch);
    const SlotExchange::Ticket ticket = slots_.begin_dispatch(ctx, tape.slots, gradient);
    meanwhile();
    slots_.finish_dispatch(ctx, tape.slots, ticket, dgrouped);
  }
  {
    const ArenaScope experts_scope(*ctx.scratch);
    experts_.backward(ctx, {.rows = tape.rows,
                            .offsets = tape.slots.offsets,
                            .up = tape.up,
                            .hidden = ctx.scratch->alloc({room, experts_.hidden()}, dtype),
                            .dup = ctx.scratch->alloc({room, experts_.up_width()}, dtype),
                            .gradient = dgrouped});
  }
  slots_.finish_return(ctx, tape.slots, slots_.begin_return(ctx, tape.slots, dgrouped), gradient);
}

void DistributedExperts::forward(const Context& ctx, const TensorView& rows, const TensorView& out,
                                 Tape& tape, const std::function<void()>& meanwhile) const {
  if (tape.slots.slots > 0) return forward_in_slots(ctx, rows, out, tape, meanwhile);
  const DType dtype = rows.dtype;
  const int64_t room = tape.routes.room, D = rows.dim(1);
  tape.rows = ctx.saved->alloc({room, D}, dtype);
  tape.up = ctx.saved->alloc({room, experts_.up_width()}, dtype);
  const ArenaScope scope(*ctx.scratch);
  const TensorView hidden = ctx.scratch->alloc({room, experts_.hidden()}, dtype);
  const TensorView results = ctx.scratch->alloc({room, D}, dtype);
  // Of further rounds.
  const int64_t spare = exchange_.may_overflow() ? room : 0;
  const TensorView spare_rows = ctx.scratch->alloc({spare, D}, dtype);
  const TensorView spare_up = ctx.scratch->alloc({spare, experts_.up_width()}, dtype);
  for (int64_t i = 0; i < int64_t(tape.routes.rounds.size()); ++i) {
    const ArenaScope round_scope(*ctx.scratch);
    const TokenRound& round = tape.routes.rounds[i];
    const int64_t count = round.offsets.back();
    const TensorView grouped = i == 0 ? tape.rows : spare_rows;
    const TensorView up = i == 0 ? tape.up : spare_up;
    const TensorView offsets = offsets_of(ctx, round);
    {
      const ArenaScope dispatch_scope(*ctx.scratch);
      const auto ticket = exchange_.begin_dispatch(ctx, tape.routes, i, rows, grouped);
      if (i == 0) meanwhile();
      exchange_.finish(ctx, ticket);
    }
    experts_.forward(ctx, {.rows = grouped.row_range(0, count),
                           .offsets = offsets,
                           .up = up.row_range(0, count),
                           .hidden = hidden.row_range(0, count),
                           .out = results.row_range(0, count)});
    exchange_.finish(ctx, exchange_.begin_return(ctx, tape.routes, i, results, out));
  }
}

void DistributedExperts::backward(const Context& ctx, const TensorView& gradient, const Tape& tape,
                                  const std::function<void(const TensorView&)>& sort_rows,
                                  const std::function<void()>& meanwhile) const {
  if (tape.slots.slots > 0) return backward_in_slots(ctx, gradient, tape, meanwhile);
  const DType dtype = gradient.dtype;
  const int64_t room = tape.routes.room, D = gradient.dim(1), U = experts_.up_width();
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView hidden = scratch.alloc({room, experts_.hidden()}, dtype);
  const TensorView dup = scratch.alloc({room, U}, dtype);
  const TensorView dgrouped = scratch.alloc({room, D}, dtype);
  const bool spare = exchange_.may_overflow();
  const TensorView spare_rows = scratch.alloc({spare ? room : 0, D}, dtype);
  const TensorView spare_up = scratch.alloc({spare ? room : 0, U}, dtype);
  const TensorView rows = scratch.alloc({spare ? gradient.dim(0) : 0, D}, dtype);
  if (tape.routes.rounds.size() > 1) sort_rows(rows);
  for (int64_t i = 0; i < int64_t(tape.routes.rounds.size()); ++i) {
    const ArenaScope round_scope(scratch);
    const TokenRound& round = tape.routes.rounds[i];
    const int64_t count = round.offsets.back();
    const TensorView grouped = (i == 0 ? tape.rows : spare_rows).row_range(0, count);
    const TensorView up = (i == 0 ? tape.up : spare_up).row_range(0, count);
    const TensorView offsets = offsets_of(ctx, round);
    if (i > 0) {
      const ArenaScope dispatch_scope(scratch);
      exchange_.finish(ctx, exchange_.begin_dispatch(ctx, tape.routes, i, rows, spare_rows));
      experts_.project_up(ctx, grouped, offsets, up);
    }
    {
      const ArenaScope dispatch_scope(scratch);
      const auto ticket = exchange_.begin_dispatch(ctx, tape.routes, i, gradient, dgrouped);
      if (i == 0) meanwhile();
      exchange_.finish(ctx, ticket);
    }
    experts_.backward(ctx, {.rows = grouped,
                            .offsets = offsets,
                            .up = up,
                            .hidden = hidden.row_range(0, count),
                            .dup = dup.row_range(0, count),
                            .gradient = dgrouped.row_range(0, count),
                            .later_round = i > 0});
    // The round's rows of `gradient` have left: their places are free for what comes back.
    exchange_.finish(ctx, exchange_.begin_return(ctx, tape.routes, i, dgrouped, gradient));
  }
}

// With E rows of each of n ranks an even step moves 4 E (n-1)/n rows to and from a rank. The worst
// sends 3 E (tokens, gradients, tokens again) and 2 (n-1) E results, and receives the reverse.
Traffic DistributedExperts::worst_traffic(const Traffic& even, int ranks) {
  if (ranks == 1) return even;
  const int64_t n = ranks;
  const auto share = [&](int64_t bytes,
                         int64_t rows) {  // rows: in E, for 4 (n-1)/n of an even load
    return (bytes * n * rows + 4 * (n - 1) - 1) / (4 * (n - 1));
  };
  return {.calls = (5 * even.calls * n + 3) / 4,
          .contributed = share(even.contributed, 3 + 2 * (n - 1)),
          .sent = share(even.sent, 3 + 2 * (n - 1)),
          .received = share(even.received, 3 * (n - 1) + 2)};
}

}  // namespace sluice
