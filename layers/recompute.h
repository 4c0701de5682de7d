// Recomputation as a decorator: the forward keeps the layer's input and what it received from other
// ranks; the backward replays the forward first. The replay exchanges none of that again, and has
// no statistics sink, so losses and loads are counted once.
#pragma once

#include <memory>
#include <vector>

#include "layers/layer.h"

namespace sluice {

class RecomputeLayer final : public Layer {
 public:
  explicit RecomputeLayer(std::unique_ptr<Layer> layer) : layer_(std::move(layer)) {}

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                 const LayerForward& io) const override;
  void backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                const Saved& saved) const override;
  std::vector<StateTensor> received_spec(const Rows& rows) const override {
    return layer_->received_spec(rows);
  }
  std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const override {
    return layer_->state_spec(rows, max_tokens);
  }
  void step(const Context& ctx, const LayerStep& io) const override { layer_->step(ctx, io); }
  void end_step(const Context& ctx, const StepStatistics& statistics) const override {
    layer_->end_step(ctx, statistics);
  }
  int64_t num_experts() const override { return layer_->num_experts(); }
  double flops_per_token(int64_t row_tokens) const override {
    return layer_->flops_per_token(row_tokens);
  }
  std::string describe_exchange() const override { return layer_->describe_exchange(); }
  std::string describe_kernels(int64_t rows, int64_t row_tokens) const override {
    return layer_->describe_kernels(rows, row_tokens);
  }

 private:
  struct Input : Saved {
    ConstTensorView x;
    Received received;
    RoutingTape* routing = nullptr;
  };
  std::unique_ptr<Layer> layer_;
};

}  // namespace sluice
