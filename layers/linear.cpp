#include "layers/linear.h"

#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"

namespace sluice {

Linear::Linear(const LayerBuild& build, const std::string& name, const LinearSpec& spec)
    : store_(&build.store) {
  const double bound = spec.scale / std::sqrt(double(spec.in));
  weight_ = store_->add(build.prefix + name + ".weight", {spec.out, spec.in}, uniform(bound), {},
                        spec.parts);
  if (spec.bias) {
    bias_ =
        store_->add(build.prefix + name + ".bias", {spec.out}, constant(0), kNoDecay, spec.parts);
  }
}

void Linear::forward(const Context& ctx, const ConstTensorView& x, const TensorView& y) const {
  gemm(ctx, {.a = x.matrix(), .b = store_->value(weight_), .c = y.matrix(), .transpose_b = true});
  if (bias_.index >= 0) add_bias(ctx, store_->value(bias_), y);
}

void Linear::backward_weight(const Context& ctx, const ConstTensorView& x,
                             const ConstTensorView& dy) const {
  gemm(ctx, {.a = dy.matrix(),
             .b = x.matrix(),
             .c = store_->grad(weight_),
             .transpose_a = true,
             .beta = 1});
  if (bias_.index >= 0) sum_rows(ctx, dy, store_->grad(bias_));
}

void Linear::backward_data(const Context& ctx, const ConstTensorView& dy, const TensorView& dx,
                           bool accumulate) const {
  gemm(ctx, {.a = dy.matrix(),
             .b = store_->value(weight_),
             .c = dx.matrix(),
             .beta = accumulate ? 1.0 : 0.0});
}

}  // namespace sluice
