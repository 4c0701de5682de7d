// A layer: a hand-written forward and backward over one micro-batch. Layers are stateless between
// calls: what the backward needs is in the Saved that the forward returns, whose tensors lie in
// ctx.saved. Gradient accumulation, several micro-batches in flight and recomputation follow from
// that.
//
// Conventions: x, y, dx, dy are (B, T, D). Parameter gradients accumulate, activation gradients
// overwrite. The residual stream belongs to the model: a layer sees only its normalised input.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/rows.h"
#include "layers/step_statistics.h"

namespace sluice {

struct Saved {
  virtual ~Saved() = default;
};

// A tensor that a layer asks for: of its recurrent state (zero at a document's start), or of what
// it receives from other ranks.
struct StateTensor {
  std::string name;
  Dims dims;
  DType dtype = DType::f32;
};

// Small tensors of fixed size that a forward gets from other ranks: incoming states, halos, expert
// counts. The backward reads them, and a replay of the forward is given them filled, so that none
// of it travels again.
struct Received {
  std::vector<TensorView> tensors = {};  // as received_spec lists them
  bool filled = false;
};

// A layer's recurrent state across steps, for documents longer than a row. The same on every
// sequence rank.
struct Carried {
  std::vector<ConstTensorView> incoming = {};  // as state_spec lists them: before the row's start
  std::vector<TensorView> outgoing = {};       // written by the forward: after the row's end
};

class RoutingTape;

struct LayerForward {
  ConstTensorView x = {};  // (B, T, D); its memory holds the same again in the backward
  TensorView y = {};       // (B, T, D)
  const StatisticsSink* statistics = nullptr;  // for losses and loads; absent on a replay
  Received* received = nullptr;      // absent: the layer keeps what it receives in ctx.saved
  const Carried* carried = nullptr;  // absent: rows start from the initial state
  RoutingTape* routing = nullptr;    // records or dictates the experts' choice; optional
};

struct LayerBackward {
  ConstTensorView dy = {};  // (B, T, D)
  TensorView dx = {};       // (B, T, D), does not overlap dy
};

struct LayerStep {
  ConstTensorView x = {};               // (B, D)
  TensorView y = {};                    // (B, D)
  int64_t position = 0;                 // of this token in its document
  std::vector<TensorView> states = {};  // as state_spec lists them, read and updated
};

class Layer {
 public:
  virtual ~Layer() = default;

  virtual std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                         const LayerForward& io) const = 0;
  virtual void backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                        const Saved& saved) const = 0;

  // What a forward over such rows receives (see Received).
  virtual std::vector<StateTensor> received_spec(const Rows&) const { return {}; }

  // The state that one token hands to the next, for `rows` rows of at most `max_tokens` tokens.
  virtual std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const = 0;
  // One token from such a state; agrees with forward.
  virtual void step(const Context& ctx, const LayerStep& io) const = 0;

  // After the optimizer's update, with the step's world-wide statistics (bias balancing of
  // experts).
  virtual void end_step(const Context&, const StepStatistics&) const {}

  // Experts whose loads it adds to the statistics.
  virtual int64_t num_experts() const { return 0; }

  // Model FLOPs of the forward per token, at rows of `row_tokens` tokens (a multiply-add is 2).
  virtual double flops_per_token(int64_t row_tokens) const = 0;

  // How tokens of other ranks take part, for the log, where a layer has a choice.
  virtual std::string describe_exchange() const { return ""; }

  // What its operators run with over such rows, for the log: a library that was asked for, or slow
  // kernels for want of fast ones. Empty: nothing to say.
  virtual std::string describe_kernels(int64_t /*rows*/, int64_t /*row_tokens*/) const {
    return "";
  }
};

}  // namespace sluice
