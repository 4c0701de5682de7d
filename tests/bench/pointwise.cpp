// norm, conv: little arithmetic a byte.
// T tokens, D model, K conv width, C channels
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/rms_norm/rms_norm.h"
#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

constexpr double kFloat = sizeof(float);

// The residual add and the norm after it, as the stack calls them.
class Norm final : public Workload {
 public:
  Norm(int64_t T, int64_t D)
      : x_(uniform({1, T, D})),
        delta_(uniform({1, T, D})),
        weight_(uniform({D})),
        sum_(zeros({1, T, D})),
        y_(zeros({1, T, D})),
        rstd_(zeros({T})),
        dy_(uniform({1, T, D})),
        dsum_(uniform({1, T, D})),
        dx_(zeros({1, T, D})),
        dweight_(zeros({D})) {}

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
                            .dweight = dweight_});
  }

 private:
  TensorView x_, delta_, weight_, sum_, y_, rstd_, dy_, dsum_, dx_, dweight_;
};

// x is a slice of in_proj's output, dx of its gradient.
class Conv final : public Workload {
 public:
  Conv(int64_t T, int64_t C, int64_t K, int64_t projection)
      : projected_(uniform({1, T, projection})),
        weight_(uniform({C, K})),
        bias_(uniform({C})),
        doc_begin_(zeros({1, T}, DType::i32)),
        y_(zeros({1, T, C})),
        dy_(uniform({1, T, C})),
        dprojected_(zeros({1, T, projection})),
        dweight_(zeros({C, K})),
        dbias_(zeros({C})) {}

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

Case conv_case(int64_t T, int64_t C, int64_t K, int64_t projection) {
  const double elements = double(T) * double(C);
  return {.shape = {{"B", 1}, {"T", T}, {"C", C}, {"K", K}},
          .forward = {.bytes = 2 * kFloat * elements},   // x, y
          .backward = {.bytes = 3 * kFloat * elements},  // dy, x, dx
          .make = [=] { return std::make_unique<Conv>(T, C, K, projection); }};
}

}  // namespace

Family norm_family() {
  const int64_t T = 2048, D = 768;
  const double elements = double(T) * double(D);
  return {.name = "norm",
          .cases = {{.shape = {{"B", 1}, {"T", T}, {"D", D}},
                     .forward = {.bytes = 4 * kFloat * elements},   // x, delta, sum, y
                     .backward = {.bytes = 4 * kFloat * elements},  // dy, sum, dsum, dx
                     .make = [=] { return std::make_unique<Norm>(T, D); }}}};
}

// Mamba's channels, then Mamba-2's, which hold x, B and C.
Family conv_family() {
  return {.name = "conv",
          .cases = {conv_case(512, 1536, 4, 2 * 1536), conv_case(2048, 1536, 4, 2 * 1536),
                    conv_case(2048, 1536 + 2 * 128, 4, 2 * 1536 + 2 * 128 + 24)}};
}

}  // namespace sluice::bench
