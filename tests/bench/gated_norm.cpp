// gated_norm: Mamba-2's norm before out_proj.
#include "kernels/gated_rms_norm/gated_rms_norm.h"

#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// z is a slice of in_proj's output, dz of its gradient.
class GatedNorm final : public Workload {
 public:
  GatedNorm(const Target& target, int64_t T, int64_t E, int64_t projection)
      : Workload(target),
        x_(uniform({1, T, E})),
        zxbcdt_(uniform({1, T, projection})),
        weight_(stat_uniform({E})),
        y_(zeros({1, T, E})),
        dy_(uniform({1, T, E})),
        dx_(zeros({1, T, E})),
        dzxbcdt_(zeros({1, T, projection})),
        dweight_(stat_zeros({E})) {}

  void forward(const Context& ctx) override {
    gated_rms_norm_forward(
        ctx, {.x = x_, .z = zxbcdt_.columns(0, {x_.row_size()}), .weight = weight_, .y = y_});
  }
  void backward(const Context& ctx) override {
    const int64_t E = x_.row_size();
    gated_rms_norm_backward(ctx, {.dy = dy_,
                                  .x = x_,
                                  .z = zxbcdt_.columns(0, {E}),
                                  .weight = weight_,
                                  .dx = dx_,
                                  .dz = dzxbcdt_.columns(0, {E}),
                                  .dweight = dweight_});
  }

 private:
  TensorView x_, zxbcdt_, weight_, y_, dy_, dx_, dzxbcdt_, dweight_;
};

}  // namespace

Case gated_norm_case(const Target& target, int64_t T, int64_t E, int64_t projection) {
  const double elements = target.width() * double(T) * double(E);
  return {.shape = {{"B", 1}, {"T", T}, {"E", E}},
          .forward = {.bytes = 3 * elements},   // x, z, y
          .backward = {.bytes = 5 * elements},  // dy, x, z, dx, dz
          .make = [=] { return std::make_unique<GatedNorm>(target, T, E, projection); }};
}

}  // namespace sluice::bench
