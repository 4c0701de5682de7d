// B batch, T tokens on this rank, D model, Hq query heads, Hkv key-value heads, hd head dim
#include "layers/mixers/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/rope/rope.h"

namespace sluice {

struct Attention::SavedTensors : Saved {
  ConstTensorView x;  // (B, T, D)
  TensorView qkv;     // (B, T, (Hq + 2 Hkv) hd), after the rotation
  TensorView y;       // (B, T, Hq, hd)
  TensorView lse;     // (B, T, Hq)
};

void AttentionConfig::validate(const std::string& where, int64_t d_model) const {
  const int64_t kv = kv_heads > 0 ? kv_heads : heads;
  if (heads % kv != 0) {
    throw UsageError(fmt::format("{}: kv_heads {} does not divide heads {}", where, kv, heads));
  }
  if (head_dim == 0 && d_model % heads != 0) {
    throw UsageError(fmt::format("{}: heads {} does not divide d_model {}; set head_dim", where,
                                 heads, d_model));
  }
  const int64_t width = head_dim > 0 ? head_dim : d_model / heads;
  const double rotary = rope.fraction * double(width);
  if (rotary != std::floor(rotary) || int64_t(rotary) % 2 != 0) {
    throw UsageError(
        fmt::format("{}: rope.fraction {} of a head of {} is {} columns; it must be an even number",
                    where, rope.fraction, width, rotary));
  }
}

Attention::Attention(const LayerBuild& build, const Config& config)
    : store_(build.store),
      config_(config),
      D_(build.d_model),
      Hq_(config.heads),
      Hkv_(config.kv_heads > 0 ? config.kv_heads : config.heads),
      hd_(config.head_dim > 0 ? config.head_dim : build.d_model / config.heads),
      rotary_(int64_t(config.rope.fraction * double(hd_))) {
  qkv_ = Linear(build, "qkv",
                {.in = D_,
                 .out = (Hq_ + 2 * Hkv_) * hd_,
                 .bias = config.bias,
                 .parts = {{"q", Hq_ * hd_}, {"k", Hkv_ * hd_}, {"v", Hkv_ * hd_}}});
  out_proj_ = Linear(build, "out_proj",
                     {.in = Hq_ * hd_,
                      .out = D_,
                      .bias = config.bias,
                      .scale = 1 / std::sqrt(double(build.num_residuals))});
}

void Attention::rotate(const Context& ctx, const TensorView& qkv, const ConstTensorView& positions,
                       bool backward) const {
  if (rotary_ == 0) return;
  for (const TensorView& heads : {q_of(qkv), k_of(qkv)}) {
    const Rope rope{
        .x = heads, .positions = positions, .rotary_dims = rotary_, .theta = config_.rope.theta};
    backward ? rope_backward(ctx, rope) : rope_forward(ctx, rope);
  }
}

std::unique_ptr<Saved> Attention::forward(const Context& ctx, const Rows& rows,
                                          const LayerForward& io) const {
  const auto [B, T, D] = io.x.shape<3>("x: (B, T, D)");
  const DType dtype = io.x.dtype;
  auto saved = std::make_unique<SavedTensors>();
  saved->x = io.x;
  saved->qkv = ctx.saved->alloc_padded_rows({B, T, (Hq_ + 2 * Hkv_) * hd_}, dtype);
  saved->y = ctx.saved->alloc({B, T, Hq_, hd_}, dtype);
  saved->lse = ctx.saved->alloc({B, T, Hq_}, stat_dtype(dtype));
  qkv_.forward(ctx, io.x, saved->qkv);
  rotate(ctx, saved->qkv, rows.positions, /*backward=*/false);
  attention_forward(ctx, {.q = q_of(saved->qkv),
                          .k = k_of(saved->qkv),
                          .v = v_of(saved->qkv),
                          .doc_begin = rows.local_doc_begin,
                          .y = saved->y,
                          .lse = saved->lse,
                          .window = config_.window});
  out_proj_.forward(ctx, saved->y, io.y);
  return saved;
}

void Attention::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                         const Saved& base) const {
  const auto& saved = static_cast<const SavedTensors&>(base);
  const int64_t B = io.dy.dim(0);
  const int64_t T = io.dy.dim(1);
  const DType dtype = io.dy.dtype;
  const ArenaScope scope(*ctx.scratch);
  const TensorView dqkv = ctx.scratch->alloc_padded_rows({B, T, (Hq_ + 2 * Hkv_) * hd_}, dtype);
  const TensorView dy = ctx.scratch->alloc({B, T, Hq_, hd_}, dtype);
  out_proj_.backward_weight(ctx, saved.y, io.dy);
  out_proj_.backward_data(ctx, io.dy, dy);
  attention_backward(ctx, {.dy = dy,
                           .q = q_of(saved.qkv),
                           .k = k_of(saved.qkv),
                           .v = v_of(saved.qkv),
                           .doc_begin = rows.local_doc_begin,
                           .y = saved.y,
                           .lse = saved.lse,
                           .dq = q_of(dqkv),
                           .dk = k_of(dqkv),
                           .dv = v_of(dqkv),
                           .window = config_.window});
  rotate(ctx, dqkv, rows.positions, /*backward=*/true);
  qkv_.backward_weight(ctx, saved.x, dqkv);
  qkv_.backward_data(ctx, dqkv, io.dx);
}

int64_t Attention::cache_tokens(int64_t max_tokens) const {
  return config_.window > 0 ? std::min(config_.window, max_tokens) : max_tokens;
}

std::vector<StateTensor> Attention::state_spec(int64_t rows, int64_t max_tokens) const {
  const Dims dims{rows, cache_tokens(max_tokens), Hkv_, hd_};
  return {{"k", dims, store_.dtype()}, {"v", dims, store_.dtype()}};
}

// The cache is a ring: a key holds its position within it, and softmax does not ask for an order.
void Attention::step(const Context& ctx, const LayerStep& io) const {
  const int64_t B = io.x.dim(0);
  const DType dtype = io.x.dtype;
  const int64_t S = io.states[0].dim(1);
  const int64_t visible = std::min(io.position + 1, S);
  if (config_.window == 0 && io.position >= S) {
    throw UsageError(
        fmt::format("the attention cache holds {} tokens, token {} does not fit", S, io.position));
  }
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView qkv = scratch.alloc({B, 1, (Hq_ + 2 * Hkv_) * hd_}, dtype);
  const TensorView positions = scratch.alloc({B, 1}, DType::i32);
  const TensorView doc_begin = scratch.alloc({1, 1}, DType::i32);
  const TensorView y = scratch.alloc({B, 1, Hq_, hd_}, dtype);
  const TensorView lse = scratch.alloc({1, 1, Hq_}, stat_dtype(dtype));
  if (!ctx.counting()) {
    std::fill_n(positions.as<int32_t>(), B, int32_t(io.position));
    *doc_begin.as<int32_t>() = int32_t(1 - visible);
  }
  qkv_.forward(ctx, io.x, qkv);
  rotate(ctx, qkv, positions, /*backward=*/false);
  for (int64_t b = 0; b < B; ++b) {
    const auto cache = [&](int state) {
      return io.states[state].slice(b).reshape({S, Hkv_ * hd_});
    };
    const TensorView q = qkv.slice(b);  // (1, (Hq + 2 Hkv) hd)
    copy(ctx, q.columns(Hq_ * hd_, {Hkv_ * hd_}), cache(0).row_range(io.position % S, 1));
    copy(ctx, q.columns((Hq_ + Hkv_) * hd_, {Hkv_ * hd_}), cache(1).row_range(io.position % S, 1));
    attention_forward(ctx, {.q = q.columns(0, {Hq_ * hd_}).reshape({1, 1, Hq_, hd_}),
                            .k = cache(0).row_range(0, visible).reshape({1, visible, Hkv_, hd_}),
                            .v = cache(1).row_range(0, visible).reshape({1, visible, Hkv_, hd_}),
                            .doc_begin = doc_begin,
                            .y = y.slice(b).reshape({1, 1, Hq_, hd_}),
                            .lse = lse,
                            .query_begin = visible - 1});
  }
  out_proj_.forward(ctx, y, io.y);
}

// Projections, then scores and values over the visible keys: half of the row, or the window.
double Attention::flops_per_token(int64_t row_tokens) const {
  const double keys = config_.window > 0 ? std::min(double(config_.window), 0.5 * row_tokens)
                                         : 0.5 * double(row_tokens);
  return 2.0 * D_ * (Hq_ + 2 * Hkv_) * hd_ + 2.0 * Hq_ * hd_ * D_ + 4.0 * keys * Hq_ * hd_;
}

}  // namespace sluice
