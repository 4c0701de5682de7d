// B batch, T tokens on this rank, D model, Hq query heads, Hkv key-value heads, hd head dim
#include "layers/mixers/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/plain_path.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/rope/rope.h"

namespace sluice {

struct Attention::SavedTensors : Saved {
  ConstTensorView x;              // (B, T, D)
  TensorView qkv;                 // (B, T, (Hq + 2 Hkv) hd), after the rotation; if it is kept
  TensorView y;                   // (B, T, Hq, hd)
  std::unique_ptr<Saved> scores;  // what attention itself keeps
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
    : store_(build.store), config_(config), D_(build.d_model) {
  if (build.carry_state) {
    throw UsageError(fmt::format(
        "{}: attention carries no keys from one row to the next; set data.carry_state: false, or "
        "take the attention branches out of model.stack",
        build.prefix.substr(0, build.prefix.size() - 1)));
  }
  shape_ = {.Hq = config.heads,
            .Hkv = config.kv_heads > 0 ? config.kv_heads : config.heads,
            .hd = config.head_dim > 0 ? config.head_dim : D_ / config.heads,
            .window = config.window,
            .backend = config.backend};
  rotary_ = int64_t(config.rope.fraction * double(shape_.hd));
  scores_ = make_attention_scores(shape_, build.groups.sequence);
  qkv_ = Linear(build, "qkv",
                {.in = D_,
                 .out = shape_.columns(),
                 .bias = config.bias,
                 .parts = {{"q", shape_.Hq * shape_.hd},
                           {"k", shape_.Hkv * shape_.hd},
                           {"v", shape_.Hkv * shape_.hd}}});
  out_proj_ = Linear(build, "out_proj",
                     {.in = shape_.Hq * shape_.hd,
                      .out = D_,
                      .bias = config.bias,
                      .scale = 1 / std::sqrt(double(build.num_residuals))});
}

void Attention::rotate(const Context& ctx, const TensorView& qkv, const ConstTensorView& positions,
                       bool backward) const {
  if (rotary_ == 0) return;
  for (const TensorView& heads : {shape_.q(qkv), shape_.k(qkv)}) {
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
  const ArenaScope scope(*ctx.scratch);
  Arena& arena = scores_->keeps_projection() ? *ctx.saved : *ctx.scratch;
  saved->x = io.x;
  saved->qkv = arena.alloc_padded_rows({B, T, shape_.columns()}, dtype);
  saved->y = ctx.saved->alloc({B, T, shape_.Hq, shape_.hd}, dtype);
  qkv_.forward(ctx, io.x, saved->qkv);
  rotate(ctx, saved->qkv, rows.positions, /*backward=*/false);
  saved->scores = scores_->forward(ctx, rows, saved->qkv, saved->y);
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
  const TensorView dqkv = ctx.scratch->alloc_padded_rows({B, T, shape_.columns()}, dtype);
  const TensorView dy = ctx.scratch->alloc({B, T, shape_.Hq, shape_.hd}, dtype);
  out_proj_.backward_data(ctx, io.dy, dy);
  const auto weight_gradient = [&] { out_proj_.backward_weight(ctx, saved.y, io.dy); };
  scores_->backward(
      ctx, rows,
      {.dy = dy, .qkv = saved.qkv, .y = saved.y, .dqkv = dqkv, .meanwhile = weight_gradient},
      *saved.scores);
  rotate(ctx, dqkv, rows.positions, /*backward=*/true);
  qkv_.backward_weight(ctx, saved.x, dqkv);
  qkv_.backward_data(ctx, dqkv, io.dx);
}

int64_t Attention::cache_tokens(int64_t max_tokens) const {
  return config_.window > 0 ? std::min(config_.window, max_tokens) : max_tokens;
}

std::vector<StateTensor> Attention::state_spec(int64_t rows, int64_t max_tokens) const {
  const Dims dims{rows, cache_tokens(max_tokens), shape_.Hkv, shape_.hd};
  return {{"k", dims, store_.dtype()}, {"v", dims, store_.dtype()}};
}

// The cache is a ring: a key holds its position within it, and softmax does not ask for an order.
void Attention::step(const Context& ctx, const LayerStep& io) const {
  const int64_t B = io.x.dim(0);
  const int64_t Hq = shape_.Hq, Hkv = shape_.Hkv, hd = shape_.hd;
  const DType dtype = io.x.dtype;
  const int64_t S = io.states[0].dim(1);
  const int64_t visible = std::min(io.position + 1, S);
  if (shape_.window == 0 && io.position >= S) {
    throw UsageError(
        fmt::format("the attention cache holds {} tokens, token {} does not fit", S, io.position));
  }
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView qkv = scratch.alloc({B, 1, shape_.columns()}, dtype);
  const TensorView positions = scratch.alloc({B, 1}, DType::i32);
  const TensorView doc_begin = scratch.alloc({1, 1}, DType::i32);
  const TensorView y = scratch.alloc({B, 1, Hq, hd}, dtype);
  const TensorView lse = scratch.alloc({1, 1, Hq}, stat_dtype(dtype));
  if (!ctx.counting()) {
    const std::vector<int32_t> at(B, int32_t(io.position)), begin(1, int32_t(1 - visible));
    copy_bytes(positions.data, ctx.device, at.data(), kCpu, B * sizeof(int32_t), ctx.stream);
    copy_bytes(doc_begin.data, ctx.device, begin.data(), kCpu, sizeof(int32_t), ctx.stream);
  }
  qkv_.forward(ctx, io.x, qkv);
  rotate(ctx, qkv, positions, /*backward=*/false);
  for (int64_t b = 0; b < B; ++b) {
    const auto cache = [&](int state) { return io.states[state].slice(b).reshape({S, Hkv * hd}); };
    const TensorView q = qkv.slice(b);  // (1, (Hq + 2 Hkv) hd)
    copy(ctx, q.columns(Hq * hd, {Hkv * hd}), cache(0).row_range(io.position % S, 1));
    copy(ctx, q.columns((Hq + Hkv) * hd, {Hkv * hd}), cache(1).row_range(io.position % S, 1));
    attention_forward(ctx, {.q = q.columns(0, {Hq * hd}).reshape({1, 1, Hq, hd}),
                            .k = cache(0).row_range(0, visible).reshape({1, visible, Hkv, hd}),
                            .v = cache(1).row_range(0, visible).reshape({1, visible, Hkv, hd}),
                            .doc_begin = doc_begin,
                            .y = y.slice(b).reshape({1, 1, Hq, hd}),
                            .lse = lse,
                            .query_begin = visible - 1});
  }
  out_proj_.forward(ctx, y, io.y);
}

std::string Attention::describe_kernels(int64_t rows, int64_t row_tokens) const {
  const Device device = store_.device();
  const DType dtype = store_.dtype();
  return joined(describe_products(device, dtype, {D_, shape_.Hq * shape_.hd}),
                describe_rope(device, dtype, shape_.hd, rotary_),
                scores_->describe_kernels(device, dtype, rows, row_tokens));
}

// Projections, then scores and values over the visible keys: half of the row, or the window.
double Attention::flops_per_token(int64_t row_tokens) const {
  const double keys = config_.window > 0 ? std::min(double(config_.window), 0.5 * row_tokens)
                                         : 0.5 * double(row_tokens);
  const double width = double(shape_.Hq * shape_.hd);
  return 2.0 * D_ * shape_.columns() + 2.0 * width * D_ + 4.0 * keys * width;
}

}  // namespace sluice
