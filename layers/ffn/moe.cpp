// B batch, T tokens on this rank, D model, F hidden width of an expert, X experts, k choices
#include "layers/ffn/moe.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/core/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/token_permute/token_permute.h"
#include "parallel/communicator.h"

namespace sluice {

// The permuted tokens and the activation are computed again in the backward.
struct Moe::SavedTensors : Saved {
  ConstTensorView x;              // (B, T, D)
  TensorView logits;              // (B, T, X)
  TensorView experts;             // (B, T, k) i32
  TensorView weights;             // (B, T, k)
  TensorView slot;                // (B, T, k) i32
  TensorView source;              // (B*T*k) i32
  TensorView offsets;             // (X + 1) i64
  TensorView counts;              // (B, X)
  TensorView up;                  // (B*T*k, up_width)
  TensorView out;                 // (B*T*k, D)
  std::unique_ptr<Saved> shared;  // of the shared expert
};

void MoeConfig::validate(const std::string& where, int64_t) const {
  if (top_k > experts) {
    throw UsageError(fmt::format("{}: top_k {} is above experts {}", where, top_k, experts));
  }
  if (experts % groups != 0) {
    throw UsageError(
        fmt::format("{}: groups {} does not divide experts {}", where, groups, experts));
  }
  if (topk_group > groups || topk_group * (experts / groups) < top_k) {
    throw UsageError(
        fmt::format("{}: topk_group {} of {} groups leaves fewer than top_k {} experts", where,
                    topk_group, groups, top_k));
  }
  if (groups > 1 && score != RouterScore::sigmoid) {
    throw UsageError(fmt::format("{}: groups {} needs score: sigmoid", where, groups));
  }
}

Moe::Moe(const LayerBuild& build, const Config& config)
    : store_(build.store),
      config_(config),
      branch_index_(build.branch_index),
      D_(build.d_model),
      F_(config.hidden),
      X_(config.experts),
      up_width_(config.activation == Activation::swiglu ? 2 * F_ : F_),
      experts_group_(build.groups.experts) {
  const bool gated = up_width_ != F_;
  const double bound = 1 / std::sqrt(double(D_));
  const double out_bound = 1 / std::sqrt(double(F_) * double(build.num_residuals));
  const int64_t ep = experts_group_ == nullptr ? 1 : experts_group_->size();
  if (X_ % ep != 0) {
    throw UsageError(fmt::format(
        "{}experts: {} experts do not divide over ep {}; set parallel.ep to a divisor of {}",
        build.prefix, X_, ep, X_));
  }
  const ParameterFlags expert{
      .group = ReduceGroup::expert, .shards = ep, .shard = ep == 1 ? 0 : experts_group_->rank()};
  router_ = store_.add(build.prefix + "router.weight", {X_, D_}, uniform(bound));
  if (config.score == RouterScore::sigmoid || config.bias_rate > 0) {
    router_bias_ = store_.add(build.prefix + "router.bias", {X_}, constant(0),
                              {.decay = false, .frozen = true});
  }
  up_ = store_.add(
      build.prefix + (gated ? "experts.gate_up.weight" : "experts.up.weight"), {X_, up_width_, D_},
      uniform(bound), expert,
      gated ? std::vector<ParameterPart>{{"gate", F_}, {"up", F_}} : std::vector<ParameterPart>{});
  down_ =
      store_.add(build.prefix + "experts.down.weight", {X_, D_, F_}, uniform(out_bound), expert);
  if (config.shared_hidden > 0) {
    LayerBuild shared = build;
    shared.prefix += "shared.";
    shared_ = std::make_unique<Mlp>(
        shared, MlpConfig{.hidden = config.shared_hidden, .activation = config.activation});
  }
}

RouterOptions Moe::router_options() const {
  return {.score = config_.score,
          .top_k = config_.top_k,
          .renormalise = config_.renormalise,
          .scale = config_.scale,
          .num_groups = config_.groups,
          .topk_group = config_.topk_group};
}

std::unique_ptr<Moe::SavedTensors> Moe::route(const Context& ctx, const ConstTensorView& x,
                                              int64_t capacity) const {
  const auto [B, T, D] = x.shape<3>("x: (B, T, D)");
  const int64_t k = config_.top_k;
  const int64_t entries = B * T * k;
  const DType stat = stat_dtype(x.dtype);
  Arena& arena = *ctx.saved;
  auto saved = std::make_unique<SavedTensors>();
  saved->x = x;
  saved->logits = arena.alloc({B, T, X_}, stat);
  saved->experts = arena.alloc({B, T, k}, DType::i32);
  saved->weights = arena.alloc({B, T, k}, stat);
  saved->slot = arena.alloc({B, T, k}, DType::i32);
  saved->source = arena.alloc({entries}, DType::i32);
  saved->offsets = arena.alloc({X_ + 1}, DType::i64);
  saved->counts = arena.alloc({B, X_}, stat);
  saved->up = arena.alloc({entries, up_width_}, x.dtype);
  saved->out = arena.alloc({entries, D_}, x.dtype);
  gemm(ctx, {.a = x.matrix(),
             .b = store_.value(router_),
             .c = saved->logits.matrix(),
             .transpose_b = true});
  topk_router_forward(ctx, {.logits = saved->logits,
                            .bias = store_.optional_value(router_bias_),
                            .experts = saved->experts,
                            .weights = saved->weights,
                            .options = router_options()});
  token_index(ctx, {.experts = saved->experts,
                    .slot = saved->slot,
                    .source = saved->source,
                    .offsets = saved->offsets,
                    .capacity = capacity});
  return saved;
}

// hidden = activation(up), of the permuted rows.
void Moe::activate(const Context& ctx, const SavedTensors& saved, const TensorView& hidden) const {
  activation_forward(ctx, {.kind = config_.activation,
                           .x = saved.up.columns(0, {F_}),
                           .up = up_width_ == F_ ? TensorView{} : saved.up.columns(F_, {F_}),
                           .y = hidden});
}

void Moe::experts_forward(const Context& ctx, const SavedTensors& saved,
                          const TensorView& y) const {
  const ArenaScope scope(*ctx.scratch);
  const TensorView rows = ctx.scratch->alloc(saved.out.dims, y.dtype);
  const TensorView hidden = ctx.scratch->alloc({saved.up.dim(0), F_}, y.dtype);
  token_permute_forward(
      ctx, {.x = saved.x, .source = saved.source, .offsets = saved.offsets, .rows = rows});
  grouped_gemm(ctx, {.a = rows,
                     .weights = store_.value(up_),
                     .c = saved.up,
                     .offsets = saved.offsets,
                     .transpose_weights = true});
  activate(ctx, saved, hidden);
  grouped_gemm(ctx, {.a = hidden,
                     .weights = store_.value(down_),
                     .c = saved.out,
                     .offsets = saved.offsets,
                     .transpose_weights = true});
  token_unpermute_forward(
      ctx, {.rows = saved.out, .slot = saved.slot, .weights = saved.weights, .y = y});
}

void Moe::collect_statistics(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                             StepStatistics* statistics) const {
  const int64_t B = saved.logits.dim(0);
  const ArenaScope scope(*ctx.scratch);
  const DType stat = saved.logits.dtype;
  const TensorView mass = ctx.scratch->alloc({B, X_}, stat);
  const TensorView z = ctx.scratch->alloc({B}, stat);
  router_statistics(ctx, {.logits = saved.logits,
                          .experts = saved.experts,
                          .counts = saved.counts,
                          .mass = mass,
                          .z = z,
                          .options = router_options()});
  if (statistics == nullptr || ctx.counting()) return;
  dispatch_float(stat, [&]<class T>() {
    const T* const counts = saved.counts.as<T>();
    const double tokens = double(rows.row_tokens);
    std::vector<double>& loads = statistics->expert_counts[branch_index_];
    loads.resize(X_, 0);
    for (int64_t b = 0; b < B; ++b) {
      double balance = 0;
      for (int64_t e = 0; e < X_; ++e) {
        loads[e] += double(counts[b * X_ + e]);
        balance += double(counts[b * X_ + e]) * double(mass.as<T>()[b * X_ + e]);
      }
      balance *= double(X_) / (tokens * tokens * double(config_.top_k));
      statistics->balance_loss += config_.aux_loss * balance / double(rows.step_rows);
      statistics->z_loss += config_.z_loss * double(z.as<T>()[b]) / tokens / double(rows.step_rows);
    }
  });
}

std::unique_ptr<Saved> Moe::forward(const Context& ctx, const Rows& rows,
                                    const LayerForward& io) const {
  const int64_t mean_numerator = rows.row_tokens * config_.top_k;
  const int64_t capacity =
      config_.capacity_factor > 0
          ? int64_t(std::ceil(config_.capacity_factor * double(mean_numerator) / double(X_)))
          : 0;
  std::unique_ptr<SavedTensors> saved = route(ctx, io.x, capacity);
  collect_statistics(ctx, rows, *saved, io.statistics);
  experts_forward(ctx, *saved, io.y);
  if (shared_) {
    const ArenaScope scope(*ctx.scratch);
    const TensorView y = ctx.scratch->alloc(io.y.dims, io.y.dtype);
    saved->shared = shared_->forward(ctx, rows, {.x = io.x, .y = y});
    add(ctx, y, io.y);
  }
  return saved;
}

void Moe::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                   const Saved& base) const {
  const auto& saved = static_cast<const SavedTensors&>(base);
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView dlogits = scratch.alloc(saved.logits.dims, saved.logits.dtype);
  experts_backward(ctx, saved, io, dlogits);
  router_loss_backward(ctx, {.logits = saved.logits,
                             .counts = saved.counts,
                             .dlogits = dlogits,
                             .row_tokens = rows.row_tokens,
                             .balance_scale = config_.aux_loss / double(rows.step_rows),
                             .z_scale = config_.z_loss / double(rows.step_rows),
                             .options = router_options()});
  gemm(ctx, {.a = dlogits.matrix(),
             .b = saved.x.matrix(),
             .c = store_.grad(router_),
             .transpose_a = true,
             .beta = 1});
  gemm(ctx, {.a = dlogits.matrix(), .b = store_.value(router_), .c = io.dx.matrix(), .beta = 1});
  if (shared_) {
    const TensorView dx = scratch.alloc(io.dx.dims, io.dx.dtype);
    shared_->backward(ctx, rows, {.dy = io.dy, .dx = dx}, *saved.shared);
    add(ctx, dx, io.dx);
  }
}

// dx and the experts' gradients, and dlogits as far as it flows through the weights of the choices.
void Moe::experts_backward(const Context& ctx, const SavedTensors& saved, const LayerBackward& io,
                           const TensorView& dlogits) const {
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const DType dtype = io.dy.dtype;
  const int64_t entries = saved.out.dim(0);
  const TensorView dweights = scratch.alloc(saved.weights.dims, saved.weights.dtype);
  const TensorView rows = scratch.alloc({entries, D_}, dtype);
  const TensorView drows = scratch.alloc({entries, D_}, dtype);
  const TensorView hidden = scratch.alloc({entries, F_}, dtype);
  const TensorView dup = scratch.alloc({entries, up_width_}, dtype);
  token_unpermute_backward(ctx, {.dy = io.dy,
                                 .rows = saved.out,
                                 .slot = saved.slot,
                                 .weights = saved.weights,
                                 .drows = drows,
                                 .dweights = dweights});
  topk_router_backward(ctx, {.dweights = dweights,
                             .logits = saved.logits,
                             .experts = saved.experts,
                             .dlogits = dlogits,
                             .options = router_options()});
  activate(ctx, saved, hidden);
  grouped_gemm_weight(
      ctx, {.a = drows, .b = hidden, .weights = store_.grad(down_), .offsets = saved.offsets});
  grouped_gemm(ctx,
               {.a = drows, .weights = store_.value(down_), .c = hidden, .offsets = saved.offsets});
  const bool gated = up_width_ != F_;
  activation_backward(ctx, {.kind = config_.activation,
                            .dy = hidden,
                            .x = saved.up.columns(0, {F_}),
                            .up = gated ? saved.up.columns(F_, {F_}) : TensorView{},
                            .dx = dup.columns(0, {F_}),
                            .dup = gated ? dup.columns(F_, {F_}) : TensorView{}});
  token_permute_forward(
      ctx, {.x = saved.x, .source = saved.source, .offsets = saved.offsets, .rows = rows});
  grouped_gemm_weight(ctx,
                      {.a = dup, .b = rows, .weights = store_.grad(up_), .offsets = saved.offsets});
  grouped_gemm(ctx, {.a = dup, .weights = store_.value(up_), .c = drows, .offsets = saved.offsets});
  token_permute_backward(ctx, {.drows = drows, .slot = saved.slot, .dx = io.dx});
}

std::vector<StateTensor> Moe::state_spec(int64_t, int64_t) const { return {}; }

// Dropless, whatever the training capacity: a token alone in its row never competes.
void Moe::step(const Context& ctx, const LayerStep& io) const {
  const ArenaScope saved_scope(*ctx.saved);
  const Dims as_row{io.x.dim(0), 1, D_};
  const TensorView y = io.y.reshape(as_row);
  const std::unique_ptr<SavedTensors> saved = route(ctx, io.x.reshape(as_row), /*capacity=*/0);
  experts_forward(ctx, *saved, y);
  if (!shared_) return;
  const ArenaScope scope(*ctx.scratch);
  const TensorView shared = ctx.scratch->alloc(io.y.dims, io.y.dtype);
  shared_->step(ctx, {.x = io.x, .y = shared});
  add(ctx, shared, io.y);
}

void Moe::end_step(const StepStatistics& statistics) const {
  if (config_.bias_rate <= 0) return;
  const auto found = statistics.expert_counts.find(branch_index_);
  if (found == statistics.expert_counts.end()) return;
  double mean = 0;
  for (const double count : found->second) mean += count / double(X_);
  dispatch_float(store_.dtype(), [&]<class T>() {
    T* const bias = store_.value(router_bias_).as<T>();
    for (int64_t e = 0; e < X_; ++e) {
      const double error = mean - found->second[e];
      bias[e] += T(config_.bias_rate * double((error > 0) - (error < 0)));
    }
  });
}

double Moe::flops_per_token(int64_t row_tokens) const {
  return 2.0 * D_ * X_ + 2.0 * double(config_.top_k) * D_ * (up_width_ + F_) +
         (shared_ ? shared_->flops_per_token(row_tokens) : 0.0);
}

}  // namespace sluice
