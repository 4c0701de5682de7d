#include "layers/mixers/linear_recurrence.h"

#include "kernels/elementwise/elementwise.h"
#include "kernels/state_passing/state_passing.h"

namespace sluice {

void BlockDecay::apply(const Context& ctx, const RankMaps& maps, const ConstTensorView& initial,
                       const TensorView& state) const {
  const ArenaScope scope(*ctx.scratch);
  const int64_t blocks = maps.rows.rows * blocks_;
  const Dims dims{1, blocks, P_, N_};
  state_passing_forward(
      ctx, {.state = maps.messages.states(maps.first, maps.last - maps.first, {blocks, P_, N_}),
            .decay = decays(ctx, maps),
            .initial = initial ? initial.reshape(dims) : initial,
            .final_state = state.reshape(dims)});
}

void BlockDecay::apply_transpose(const Context& ctx, const RankMaps& maps,
                                 const TensorView& gradient) const {
  const ArenaScope scope(*ctx.scratch);
  const int64_t blocks = maps.rows.rows * blocks_;
  state_passing_backward(
      ctx, {.dincoming = maps.messages.states(maps.first, maps.last - maps.first, {blocks, P_, N_}),
            .decay = decays(ctx, maps),
            .dinitial = gradient.reshape({1, blocks, P_, N_})});
}

LinearRecurrence::LinearRecurrence(const LayerBuild& build,
                                   std::unique_ptr<const Transition> transition)
    : dtype_(stat_dtype(build.store.dtype())),
      carries_(build.carry_state),
      transition_(std::move(transition)) {
  Communicator* const group = build.groups.sequence;
  if (group != nullptr && group->size() > 1) sequence_ = std::make_unique<StateExchange>(*group);
}

std::vector<StateTensor> LinearRecurrence::received_spec(const Rows& rows) const {
  std::vector<StateTensor> spec;
  if (sequence_ || carries_) {
    spec.push_back({"entering state", transition_->state_dims(rows.rows), dtype_});
  }
  if (sequence_) {
    spec.push_back({"transitions", {ranks(), transition_->packed_size(rows.rows)}, dtype_});
  }
  return spec;
}

TensorView LinearRecurrence::final_state(const Carried* carried) const {
  return carried == nullptr || sequence_ ? TensorView{} : carried->outgoing[kState];
}

void LinearRecurrence::forward(const Context& ctx, const Rows& rows, const Forward& args) const {
  SLUICE_CHECK(args.carried == nullptr || carries_,
               "a state is carried into a layer that was built without carry_state");
  const Passed& passed = args.passed;
  if (!passed.state || passed.filled) return args.meanwhile();
  const ConstTensorView initial =
      args.carried == nullptr ? ConstTensorView{} : args.carried->incoming[kState];
  const auto begin_row = [&] {
    if (initial) copy(ctx, initial, passed.state);
    if (!initial) zero(ctx, passed.state);
  };
  if (!sequence_) {
    begin_row();
    return args.meanwhile();
  }
  const int rank = sequence_->rank();
  const Dims dims = passed.state.dims;
  const int64_t packed = passed.transitions.dim(1);
  const ArenaScope scope(*ctx.scratch);
  const StateMessages messages = sequence_->allocate(ctx, dims.numel(), packed, dtype_);
  args.fold(messages.state(rank).reshape(dims), messages.transition(rank));
  const StateExchange::Ticket ticket = sequence_->begin(messages);
  args.meanwhile();
  sequence_->finish(ctx, ticket);

  copy(ctx, messages.transitions(0, ranks(), {packed}).matrix(), passed.transitions);
  const auto apply = [&](int first, int last, const ConstTensorView& before,
                         const TensorView& state) {
    transition_->apply(ctx,
                       {.rows = rows,
                        .messages = messages,
                        .transitions = passed.transitions,
                        .first = first,
                        .last = last},
                       before, state);
  };
  if (rank == 0) begin_row();
  if (rank > 0) apply(0, rank, initial, passed.state);
  // Every rank goes on to the row's end, by the same sums in the same order.
  if (args.carried != nullptr) {
    apply(rank, ranks(), passed.state, args.carried->outgoing[kState]);
  }
}

TensorView LinearRecurrence::backward(const Context& ctx, const Rows& rows, const Passed& passed,
                                      const ReverseFold& reverse_fold,
                                      const Meanwhile& meanwhile) const {
  if (!sequence_) {
    meanwhile();
    return {};
  }
  const int rank = sequence_->rank();
  const Dims dims = passed.state.dims;
  const TensorView gradient = ctx.scratch->alloc(dims, dtype_);
  const ArenaScope scope(*ctx.scratch);
  const StateMessages messages = sequence_->allocate(ctx, dims.numel(), 0, dtype_);
  reverse_fold(messages.state(rank).reshape(dims));
  const StateExchange::Ticket ticket = sequence_->begin(messages);
  meanwhile();
  sequence_->finish(ctx, ticket);
  if (rank + 1 == ranks()) {
    zero(ctx, gradient);
    return gradient;
  }
  transition_->apply_transpose(ctx,
                               {.rows = rows,
                                .messages = messages,
                                .transitions = passed.transitions,
                                .first = rank + 1,
                                .last = ranks()},
                               gradient);
  return gradient;
}

}  // namespace sluice
