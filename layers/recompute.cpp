#include "layers/recompute.h"

namespace sluice {

std::unique_ptr<Saved> RecomputeLayer::forward(const Context& ctx, const Rows& rows,
                                               const LayerForward& io) const {
  const ArenaScope scope(*ctx.saved);
  layer_->forward(ctx, rows, io);
  auto saved = std::make_unique<Input>();
  saved->x = io.x;
  return saved;
}

void RecomputeLayer::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                              const Saved& base) const {
  const auto& input = static_cast<const Input&>(base);
  const ArenaScope saved_scope(*ctx.saved);
  std::unique_ptr<Saved> saved;
  {
    const ArenaScope scope(*ctx.scratch);
    const TensorView y = ctx.scratch->alloc(io.dy.dims, io.dy.dtype);
    saved = layer_->forward(ctx, rows, {.x = input.x, .y = y});
  }
  layer_->backward(ctx, rows, io, *saved);
}

}  // namespace sluice
