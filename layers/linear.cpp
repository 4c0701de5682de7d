#include "layers/linear.h"

#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"

namespace sluice {

Linear::Linear(const LayerBuild& build, const std::string& name, const LinearSpec& spec)
    : store_(&build.store), count_(spec.out) {
  const double bound = spec.scale / std::sqrt(double(spec.in));
  weight_ = store_->add(build.prefix + name + ".weight", {spec.out, spec.in}, uniform(bound),
                        {.product = true}, spec.parts);
  if (spec.bias) {
    bias_ =
        store_->add(build.prefix + name + ".bias", {spec.out}, constant(0), kNoDecay, spec.parts);
  }
}

Linear Linear::outputs(int64_t begin, int64_t count) const {
  SLUICE_CHECK(begin >= 0 && begin + count <= count_, "outputs [", begin, ", ", begin + count,
               ") of ", count_);
  Linear part = *this;
  part.begin_ = begin_ + begin;
  part.count_ = count;
  return part;
}

void Linear::forward(const Context& ctx, const ConstTensorView& x, const TensorView& y) const {
  gemm(ctx, {.a = x.matrix(),
             .b = rows_of(store_->value(weight_)),
             .c = y.matrix(),
             .bias = bias_.index >= 0 ? part_of(store_->value(bias_)) : TensorView{},
             .transpose_b = true});
}

void Linear::backward_weight(const Context& ctx, const ConstTensorView& x,
                             const ConstTensorView& dy) const {
  gemm(ctx, {.a = dy.matrix(),
             .b = x.matrix(),
             .c = rows_of(store_->grad(weight_)),
             .transpose_a = true,
             .beta = store_->grad_beta(weight_)});
  if (bias_.index >= 0) sum_rows(ctx, dy, part_of(store_->grad(bias_)));
}

void Linear::backward_data(const Context& ctx, const ConstTensorView& dy, const TensorView& dx,
                           bool accumulate) const {
  gemm(ctx, {.a = dy.matrix(),
             .b = rows_of(store_->value(weight_)),
             .c = dx.matrix(),
             .beta = accumulate ? 1.0 : 0.0});
}

}  // namespace sluice
