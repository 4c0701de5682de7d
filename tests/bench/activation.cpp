// activation: of feed-forward layers.
// T tokens, F hidden width
#include "kernels/activation/activation.h"

#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

constexpr double kFloat = sizeof(float);

// Gate and up are the two halves of one projection's output, and so are their gradients.
class Feedforward final : public Workload {
 public:
  Feedforward(Activation kind, int64_t T, int64_t F)
      : kind_(kind),
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

Case activation_case(Activation kind, int64_t T, int64_t F) {
  const double elements = double(T) * double(F);
  const int inputs = kind == Activation::swiglu ? 2 : 1;
  return {.shape = {{"kind", int64_t(kind)}, {"T", T}, {"F", F}},
          .forward = {.bytes = kFloat * (inputs + 1) * elements},       // x, up; y
          .backward = {.bytes = kFloat * (2 * inputs + 1) * elements},  // dy, x, up; dx, dup
          .make = [=] { return std::make_unique<Feedforward>(kind, T, F); }};
}

}  // namespace

// SwiGLU, squared ReLU and GELU, in the order of the enumeration.
Family activation_family() {
  return {.name = "activation",
          .cases = {activation_case(Activation::swiglu, 2048, 2048),
                    activation_case(Activation::relu2, 2048, 3072),
                    activation_case(Activation::gelu, 2048, 3072)}};
}

}  // namespace sluice::bench
