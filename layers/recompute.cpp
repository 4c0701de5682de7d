#include "layers/recompute.h"

#include "layers/received.h"

namespace sluice {

std::unique_ptr<Saved> RecomputeLayer::forward(const Context& ctx, const Rows& rows,
                                               const LayerForward& io) const {
  auto input = std::make_unique<Input>();
  input->x = io.x;
  input->routing = io.routing;
  input->received = new_received(ctx, layer_->received_spec(rows));
  const ArenaScope scope(*ctx.saved);
  LayerForward inner = io;
  inner.received = &input->received;
  layer_->forward(ctx, rows, inner);
  input->received.filled = true;
  return input;
}

void RecomputeLayer::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                              const Saved& base) const {
  const auto& input = static_cast<const Input&>(base);
  Received received = input.received;
  const ArenaScope saved_scope(*ctx.saved);
  std::unique_ptr<Saved> saved;
  {
    const ArenaScope scope(*ctx.scratch);
    const TensorView y = ctx.scratch->alloc(io.dy.dims, io.dy.dtype);
    saved = layer_->forward(
        ctx, rows, {.x = input.x, .y = y, .received = &received, .routing = input.routing});
  }
  layer_->backward(ctx, rows, io, *saved);
}

}  // namespace sluice
