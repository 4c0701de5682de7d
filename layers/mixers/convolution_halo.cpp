#include "layers/mixers/convolution_halo.h"

namespace sluice {

ConvolutionHalo::ConvolutionHalo(const LayerBuild& build, int64_t conv_width, int64_t channels)
    : dtype_(build.store.dtype()),
      carries_(build.carry_state),
      width_(conv_width - 1),
      channels_(channels),
      ranks_(build.groups.sequence == nullptr ? 1 : build.groups.sequence->size()),
      exchange_(build.groups.sequence, width_) {}

std::vector<StateTensor> ConvolutionHalo::received_spec(const Rows& rows) const {
  if (ranks_ == 1 && !carries_) return {};
  return {{"halo", {rows.rows, width_, channels_}, dtype_}};
}

void ConvolutionHalo::forward(const Context& ctx, const Rows& rows, const Forward& args) const {
  SLUICE_CHECK(args.carried == nullptr || carries_,
               "a state is carried into a layer that was built without carry_state");
  const TensorView& halo = args.passed.halo;
  if (!halo || args.passed.filled) return args.meanwhile();
  using End = HaloExchange::End;
  const Carried* const carried = args.carried;
  const ConstTensorView before = carried == nullptr ? ConstTensorView{} : carried->incoming[kTail];
  const ArenaScope scope(*ctx.scratch);
  const HaloExchange::Ticket of_shard = exchange_.begin(ctx, rows, args.x, End::shard_begin);
  HaloExchange::Ticket of_row;
  if (carried != nullptr) of_row = exchange_.begin(ctx, rows, args.x, End::row_end);
  args.meanwhile();
  exchange_.finish(ctx, of_shard, before, halo);
  if (carried != nullptr) exchange_.finish(ctx, of_row, before, carried->outgoing[kTail]);
}

void ConvolutionHalo::backward(const Context& ctx, const Rows& rows, const TensorView& dhalo,
                               const TensorView& dx, const Meanwhile& meanwhile) const {
  if (ranks_ == 1) return meanwhile();
  const ArenaScope scope(*ctx.scratch);
  const HaloExchange::Ticket ticket = exchange_.begin_backward(ctx, rows, dhalo, dx);
  meanwhile();
  exchange_.finish_backward(ctx, ticket);
}

}  // namespace sluice
