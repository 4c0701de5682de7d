// The routed experts that this rank holds: feed-forwards of one shape, each applied to its own
// group of rows.
//
//   out = down_e(activation(up_e(row)))      for the rows [offsets[e], offsets[e+1]) of expert e
//
// X experts here, D model, F hidden width, U = 2F with a gate (gate, then up), else F
#pragma once

#include "kernels/activation/activation.h"
#include "layers/layer_build.h"

namespace sluice {

struct ExpertsSpec {
  int64_t experts = 0;  // world-wide
  int64_t hidden = 0;   // F
  Activation activation = Activation::swiglu;
};

class Experts {
 public:
  // Adds <prefix>experts.{gate_up or up, down}.weight, cut over build.groups.experts. Throws
  // UsageError if the experts do not divide.
  Experts(const LayerBuild& build, const ExpertsSpec& spec);

  int64_t count() const { return X_; }  // here
  int64_t hidden() const { return F_; }
  int64_t up_width() const { return up_width_; }

  struct Forward {
    ConstTensorView rows = {};     // (rows, D)
    ConstTensorView offsets = {};  // (X + 1) i64
    TensorView up = {};            // (rows, U), for the backward
    TensorView hidden = {};        // (rows, F), scratch
    TensorView out = {};           // (rows, D)
  };
  void forward(const Context& ctx, const Forward& io) const;

  struct Backward {
    ConstTensorView rows = {};     // (rows, D)
    ConstTensorView offsets = {};  // (X + 1) i64
    ConstTensorView up = {};       // (rows, U)
    TensorView hidden = {};        // (rows, F), scratch
    TensorView dup = {};           // (rows, U), scratch
    TensorView gradient = {};      // (rows, D): of out; then of rows
    bool later_round = false;      // adds to the weights' gradients of an earlier round
  };
  void backward(const Context& ctx, const Backward& io) const;

  // `up` alone, as forward leaves it.
  void project_up(const Context& ctx, const ConstTensorView& rows, const ConstTensorView& offsets,
                  const TensorView& up) const;

 private:
  ParameterStore& store_;
  Activation activation_;
  int64_t X_, F_, up_width_;
  ParameterId up_, down_;
};

}  // namespace sluice
