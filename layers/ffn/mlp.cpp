// B batch, T tokens on this rank, D model, F hidden width
#include "layers/ffn/mlp.h"

#include <cmath>

#include "kernels/core/plain_path.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"

namespace sluice {

struct Mlp::SavedTensors : Saved {
  ConstTensorView x;  // (B, T, D)
  TensorView up;      // (B, T, up_width): gate then up, or up alone
};

void MlpConfig::validate(const std::string&, int64_t) const {}

Mlp::Mlp(const LayerBuild& build, const Config& config)
    : store_(build.store),
      config_(config),
      D_(build.d_model),
      F_(config.hidden),
      up_width_(config.activation == Activation::swiglu ? 2 * F_ : F_) {
  const bool gated = up_width_ != F_;
  up_ = Linear(build, gated ? "gate_up" : "up",
               {.in = D_,
                .out = up_width_,
                .bias = config.bias,
                .parts = gated ? std::vector<ParameterPart>{{"gate", F_}, {"up", F_}}
                               : std::vector<ParameterPart>{}});
  down_ = Linear(build, "down",
                 {.in = F_,
                  .out = D_,
                  .bias = config.bias,
                  .scale = 1 / std::sqrt(double(build.num_residuals))});
}

// As the weights of the only expert.
ConstTensorView Mlp::as_expert(const Linear& linear) const {
  const ConstTensorView weight = store_.value(linear.weight());
  return weight.reshape({1, weight.dim(0), weight.dim(1)});
}

void Mlp::project_up(const Context& ctx, const ConstTensorView& x, const TensorView& up,
                     const TensorView& hidden) const {
  if (!config_.bias) {
    return grouped_up(ctx, {.kind = config_.activation,
                            .rows = x.matrix(),
                            .weights = as_expert(up_),
                            .up = up.matrix(),
                            .hidden = hidden.matrix()});
  }
  up_.forward(ctx, x, up);
  activation_forward(ctx, {.kind = config_.activation,
                           .x = up.columns(0, {F_}),
                           .up = up_width_ == F_ ? TensorView{} : up.columns(F_, {F_}),
                           .y = hidden});
}

std::unique_ptr<Saved> Mlp::forward(const Context& ctx, const Rows&, const LayerForward& io) const {
  const auto [B, T, D] = io.x.shape<3>("x: (B, T, D)");
  auto saved = std::make_unique<SavedTensors>();
  saved->x = io.x;
  saved->up = ctx.saved->alloc_padded_rows({B, T, up_width_}, io.x.dtype);
  const ArenaScope scope(*ctx.scratch);
  const TensorView hidden = ctx.scratch->alloc({B, T, F_}, io.x.dtype);
  project_up(ctx, io.x, saved->up, hidden);
  down_.forward(ctx, hidden, io.y);
  return saved;
}

void Mlp::backward(const Context& ctx, const Rows&, const LayerBackward& io,
                   const Saved& base) const {
  const auto& saved = static_cast<const SavedTensors&>(base);
  const int64_t B = io.dy.dim(0);
  const int64_t T = io.dy.dim(1);
  const ArenaScope scope(*ctx.scratch);
  const TensorView dup = ctx.scratch->alloc_padded_rows({B, T, up_width_}, io.dy.dtype);
  const TensorView hidden = ctx.scratch->alloc({B, T, F_}, io.dy.dtype);
  grouped_down_backward(ctx, {.kind = config_.activation,
                              .dout = io.dy.matrix(),
                              .weights = as_expert(down_),
                              .up = saved.up.matrix(),
                              .dup = dup.matrix(),
                              .hidden = hidden.matrix()});
  down_.backward_weight(ctx, hidden, io.dy);
  up_.backward_weight(ctx, saved.x, dup);
  up_.backward_data(ctx, dup, io.dx);
}

std::vector<StateTensor> Mlp::state_spec(int64_t, int64_t) const { return {}; }

void Mlp::step(const Context& ctx, const LayerStep& io) const {
  const int64_t B = io.x.dim(0);
  const ArenaScope scope(*ctx.scratch);
  const TensorView up = ctx.scratch->alloc({B, up_width_}, io.x.dtype);
  const TensorView hidden = ctx.scratch->alloc({B, F_}, io.x.dtype);
  project_up(ctx, io.x, up, hidden);
  down_.forward(ctx, hidden, io.y);
}

std::string Mlp::describe_kernels(int64_t, int64_t) const {
  return joined(describe_products(store_.device(), store_.dtype(), {D_, F_}),
                describe_activation(store_.device(), store_.dtype(), F_));
}

double Mlp::flops_per_token(int64_t) const { return 2.0 * D_ * (up_width_ + F_); }

}  // namespace sluice
