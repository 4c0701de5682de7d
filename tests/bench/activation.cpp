// activation: of feed-forward layers.
// T tokens, F hidden width
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// Gate and up are the two halves of one projection's output, and so are their gradients.
class Feedforward final : public Workload {
 public:
  Feedforward(const Target& target, Activation kind, int64_t T, int64_t F)
      : Workload(target),
        kind_(kind),
        F_(F),
        gate_up_(uniform({1, T, gated() ? 2 * F : F}, 4)),
        y_(zeros({1, T, F})),
        dy_(uniform({1, T, F})),
        dgate_up_(zeros(gate_up_.dims)) {}

  void forward(const Context& ctx) override {
    activation_forward(ctx, {.kind = kind_, .x = gate(gate_up_), .up = up(gate_up_), .y = y_});
  }
  void backward(const Context& ctx) override {
    activation_backward(ctx, {.kind = kind_,
                              .dy = dy_,
                              .x = gate(gate_up_),
                              .up = up(gate_up_),
                              .dx = gate(dgate_up_),
                              .dup = up(dgate_up_)});
  }

 private:
  bool gated() const { return kind_ == Activation::swiglu; }
  TensorView gate(const TensorView& gate_up) const { return gate_up.columns(0, {F_}); }
  TensorView up(const TensorView& gate_up) const {
    return gated() ? gate_up.columns(F_, {F_}) : TensorView{};
  }

  Activation kind_;
  int64_t F_;
  TensorView gate_up_, y_, dy_, dgate_up_;
};

}  // namespace

Case activation_case(const Target& target, Activation kind, int64_t T, int64_t F) {
  const double elements = target.width() * double(T) * double(F);
  const int inputs = kind == Activation::swiglu ? 2 : 1;
  return {.part = enum_names(kind)[size_t(kind)],
          .shape = {{"B", 1}, {"T", T}, {"F", F}},
          .forward = {.bytes = (inputs + 1) * elements},       // x, up; y
          .backward = {.bytes = (2 * inputs + 1) * elements},  // dy, x, up; dx, dup
          .make = [=] { return std::make_unique<Feedforward>(target, kind, T, F); }};
}

}  // namespace sluice::bench
