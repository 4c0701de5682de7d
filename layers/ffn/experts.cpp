#include "layers/ffn/experts.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"
#include "layers/initializers.h"
#include "parallel/communicator.h"

namespace sluice {

Experts::Experts(const LayerBuild& build, const ExpertsSpec& spec)
    : store_(build.store),
      activation_(spec.activation),
      X_(spec.experts),
      F_(spec.hidden),
      up_width_(spec.activation == Activation::swiglu ? 2 * F_ : F_) {
  const Communicator* const group = build.groups.experts;
  const int64_t ep = group == nullptr ? 1 : group->size();
  if (spec.experts % ep != 0) {
    throw UsageError(fmt::format(
        "{}experts: {} experts do not divide over ep {}; set parallel.ep to a divisor of {}",
        build.prefix, spec.experts, ep, spec.experts));
  }
  X_ = spec.experts / ep;
  const bool gated = up_width_ != F_;
  const int64_t D = build.d_model;
  const double bound = 1 / std::sqrt(double(D));
  const double out_bound = 1 / std::sqrt(double(F_) * double(build.num_residuals));
  const ParameterFlags flags{.group = ReduceGroup::expert,
                             .product = true,
                             .shards = ep,
                             .shard = ep == 1 ? 0 : group->rank()};
  up_ = store_.add(
      build.prefix + (gated ? "experts.gate_up.weight" : "experts.up.weight"),
      {spec.experts, up_width_, D}, uniform(bound), flags,
      gated ? std::vector<ParameterPart>{{"gate", F_}, {"up", F_}} : std::vector<ParameterPart>{});
  down_ = store_.add(build.prefix + "experts.down.weight", {spec.experts, D, F_},
                     uniform(out_bound), flags);
}

void Experts::project_up(const Context& ctx, const ConstTensorView& rows,
                         const ConstTensorView& offsets, const TensorView& up) const {
  grouped_gemm(ctx, {.a = rows,
                     .weights = store_.value(up_),
                     .c = up,
                     .offsets = offsets,
                     .transpose_weights = true});
}

void Experts::forward(const Context& ctx, const Forward& io) const {
  grouped_up(ctx, {.kind = activation_,
                   .rows = io.rows,
                   .weights = store_.value(up_),
                   .offsets = io.offsets,
                   .up = io.up,
                   .hidden = io.hidden});
  grouped_gemm(ctx, {.a = io.hidden,
                     .weights = store_.value(down_),
                     .c = io.out,
                     .offsets = io.offsets,
                     .transpose_weights = true});
}

// The activation is computed again.
void Experts::backward(const Context& ctx, const Backward& io) const {
  grouped_down_backward(ctx, {.kind = activation_,
                              .dout = io.gradient,
                              .weights = store_.value(down_),
                              .offsets = io.offsets,
                              .up = io.up,
                              .dup = io.dup,
                              .hidden = io.hidden});
  const auto weight_gradient = [&](ParameterId id, const ConstTensorView& a,
                                   const ConstTensorView& b, bool independent) {
    grouped_gemm_weight(ctx, {.a = a,
                              .b = b,
                              .weights = store_.grad(id),
                              .offsets = io.offsets,
                              .beta = io.later_round ? 1 : store_.grad_beta(id),
                              .independent = independent});
  };
  weight_gradient(down_, io.gradient, io.hidden, false);
  weight_gradient(up_, io.dup, io.rows, true);
  grouped_gemm(ctx, {.a = io.dup,
                     .weights = store_.value(up_),
                     .c = io.gradient,
                     .offsets = io.offsets,
                     .independent = true});
}

}  // namespace sluice
