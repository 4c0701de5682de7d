// X experts, n ranks, L = X / n experts on each, D row size
#include "parallel/slot_exchange.h"

#include <vector>

#include "kernels/token_slots/token_slots.h"

namespace sluice {

SlotExchange::Route SlotExchange::route(const Context& ctx, int64_t slots,
                                        const ConstTensorView& offsets,
                                        const ConstTensorView& counts,
                                        const ConstTensorView& all) const {
  const int64_t n = group_.size(), L = experts_ / n;
  expect("offsets", offsets, {experts_ + 1}, DType::i64, ctx.device);
  expect("counts", counts, {experts_}, DType::i32, ctx.device);
  expect("all", all, {n, experts_}, DType::i32, ctx.device);
  SLUICE_CHECK(slots > 0, "an expert takes at least one row of a rank, got ", slots);
  Route route{.slots = slots,
              .own_begin = offsets.columns(0, {experts_}).reshape({1, experts_}),
              .own_counts = counts.reshape({1, experts_}),
              .here_counts = all.columns(group_.rank() * L, {L}),
              .here_begin = ctx.saved->alloc({n, L}, DType::i64),
              .offsets = ctx.saved->alloc({L + 1}, DType::i64)};
  slot_places(ctx,
              {.counts = route.here_counts, .begin = route.here_begin, .offsets = route.offsets});
  return route;
}

SlotExchange::Ticket SlotExchange::exchange(const Context& ctx, const TensorView& leaving) const {
  const std::vector<int64_t> parts(group_.size(), leaving.numel() / group_.size());
  const TensorView landed = ctx.scratch->alloc(leaving.dims, leaving.dtype);
  return {.event = group_.all_to_all_v(leaving, parts, landed, parts), .landed = landed};
}

SlotExchange::Ticket SlotExchange::begin_dispatch(const Context& ctx, const Route& route,
                                                  const ConstTensorView& rows) const {
  const TensorView leaving = ctx.scratch->alloc({room(route), rows.dim(1)}, rows.dtype);
  rows_to_slots(
      ctx, {.rows = rows, .begin = route.own_begin, .counts = route.own_counts, .slots = leaving});
  return exchange(ctx, leaving);
}

void SlotExchange::finish_dispatch(const Context& ctx, const Route& route, const Ticket& ticket,
                                   const TensorView& grouped) const {
  ticket.event.order(ctx.stream);
  slots_to_rows(ctx, {.slots = ticket.landed,
                      .begin = route.here_begin,
                      .counts = route.here_counts,
                      .rows = grouped});
}

SlotExchange::Ticket SlotExchange::begin_return(const Context& ctx, const Route& route,
                                                const ConstTensorView& grouped) const {
  const TensorView leaving = ctx.scratch->alloc({room(route), grouped.dim(1)}, grouped.dtype);
  rows_to_slots(
      ctx,
      {.rows = grouped, .begin = route.here_begin, .counts = route.here_counts, .slots = leaving});
  return exchange(ctx, leaving);
}

void SlotExchange::finish_return(const Context& ctx, const Route& route, const Ticket& ticket,
                                 const TensorView& rows) const {
  ticket.event.order(ctx.stream);
  slots_to_rows(
      ctx,
      {.slots = ticket.landed, .begin = route.own_begin, .counts = route.own_counts, .rows = rows});
}

}  // namespace sluice
