// norm, conv: little arithmetic a byte.
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/rms_norm/rms_norm.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// The residual add and the norm after it, as the stack calls them. The residual stream may be f32
// beside bf16 branches; its gradient then comes in bf16 too.
class Norm final : public Workload {
 public:
  Norm(const Target& target, DType residual, int64_t T, int64_t D)
      : Workload(target),
        x_(random({1, T, D}, residual)),
        delta_(uniform({1, T, D})),
        weight_(stat_uniform({D})),
        sum_(zeros({1, T, D}, residual)),
        y_(zeros({1, T, D})),
        rstd_(stat_zeros({T})),
        dy_(uniform({1, T, D})),
        dsum_(random({1, T, D}, residual)),
        dx_(zeros({1, T, D}, residual)),
        dweight_(stat_zeros({D})) {
    if (residual != target.dtype) dx_rounded_ = zeros({1, T, D});
  }

  void forward(const Context& ctx) override {
    rms_norm_forward(
        ctx, {.x = x_, .delta = delta_, .weight = weight_, .sum = sum_, .y = y_, .rstd = rstd_});
  }
  void backward(const Context& ctx) override {
    rms_norm_backward(ctx, {.dy = dy_,
                            .sum = sum_,
                            .weight = weight_,
                            .rstd = rstd_,
                            .dsum = dsum_,
                            .dx = dx_,
                            .dx_rounded = dx_rounded_,
                            .dweight = dweight_});
  }

 private:
  TensorView x_, delta_, weight_, sum_, y_, rstd_, dy_, dsum_, dx_, dx_rounded_, dweight_;
};

// x is a slice of in_proj's output, dx of its gradient.
class Conv final : public Workload {
 public:
  Conv(const Target& target, const ConvShape& s)
      : Workload(target),
        projected_(uniform({s.B, s.T, s.projection})),
        weight_(uniform({s.C, s.K})),
        bias_(stat_uniform({s.C})),
        doc_begin_(zeros({s.B, s.T}, DType::i32)),
        y_(zeros({s.B, s.T, s.C})),
        dy_(uniform({s.B, s.T, s.C})),
        dprojected_(zeros({s.B, s.T, s.projection})),
        dweight_(stat_zeros({s.C, s.K})),
        dbias_(stat_zeros({s.C})) {}

  void forward(const Context& ctx) override {
    causal_conv1d_forward(ctx, {.x = projected_.columns(0, {bias_.numel()}),
                                .weight = weight_,
                                .bias = bias_,
                                .doc_begin = doc_begin_,
                                .y = y_});
  }
  void backward(const Context& ctx) override {
    const int64_t C = bias_.numel();
    causal_conv1d_backward(ctx, {.dy = dy_,
                                 .x = projected_.columns(0, {C}),
                                 .weight = weight_,
                                 .bias = bias_,
                                 .doc_begin = doc_begin_,
                                 .dx = dprojected_.columns(0, {C}),
                                 .dweight = dweight_,
                                 .dbias = dbias_});
  }

 private:
  TensorView projected_, weight_, bias_, doc_begin_, y_, dy_, dprojected_, dweight_, dbias_;
};

}  // namespace

Case norm_case(const Target& target, DType residual, int64_t T, int64_t D) {
  const double elements = double(T) * double(D), wide = double(size_of(residual));
  const double narrow = target.width();
  const bool mixed = residual != target.dtype;
  return {.part = mixed ? "f32 residual" : "",
          .shape = {{"B", 1}, {"T", T}, {"D", D}},
          // x, sum; delta, y
          .forward = {.bytes = (2 * wide + 2 * narrow) * elements},
          // sum, dsum, dx; dy and, where it is another, dx rounded
          .backward = {.bytes = (3 * wide + (mixed ? 2 : 1) * narrow) * elements},
          .make = [=] { return std::make_unique<Norm>(target, residual, T, D); }};
}

Case conv_case(const Target& target, const ConvShape& s) {
  const double elements = target.width() * double(s.B) * double(s.T) * double(s.C);
  return {.shape = {{"B", s.B}, {"T", s.T}, {"C", s.C}, {"K", s.K}},
          .forward = {.bytes = 2 * elements},   // x, y
          .backward = {.bytes = 3 * elements},  // dy, x, dx
          .make = [=] { return std::make_unique<Conv>(target, s); }};
}

}  // namespace sluice::bench
