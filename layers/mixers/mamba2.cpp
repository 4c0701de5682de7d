// B batch, T tokens on this rank, D model, E inner, H heads, P head dim, N state dim, G groups,
// K conv width, C = E + 2 G N conv channels, Q chunk length, M = ceil(T / Q) chunks
#include "layers/mixers/mamba2.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/chunk_cumsum/chunk_cumsum.h"
#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_scan/ssd_backward.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/chunk_state/entering_states.h"
#include "kernels/core/chunks.h"
#include "kernels/core/plain_path.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/ssd_step/ssd_step.h"

namespace sluice {

// The convolution, steps, decays and chunk states are cheap beside the projections: the backward
// computes them again.
struct Mamba2::SavedTensors : Saved {
  ConstTensorView x;  // (B, T, D)
  TensorView zxbcdt;  // (B, T, E + C + H)
  TensorView y;       // (B, T, H, P), of the SSD
  Passed passed;      // halo (B, K-1, C), state (B, H, P, N), transitions: decays (ranks, B * H)
};

// What the SSD reads, in scratch.
struct Mamba2::Chunked {
  int64_t chunk;   // Q
  TensorView xbc;  // (B, T, C)
  TensorView dt;   // (B, T, H)
  TensorView cum;  // (B, T, H)
};

void Mamba2Config::validate(const std::string& where, int64_t d_model) const {
  if (heads == 0 && expand * d_model % head_dim != 0) {
    throw UsageError(
        fmt::format("{}: head_dim {} does not divide the inner width {} (expand {} * d_model {})",
                    where, head_dim, expand * d_model, expand, d_model));
  }
  if (num_heads(d_model) % groups != 0) {
    throw UsageError(fmt::format("{}: groups {} does not divide the {} heads", where, groups,
                                 num_heads(d_model)));
  }
  if (!(dt_init_min > 0 && dt_init_min <= dt_init_max)) {
    throw UsageError(fmt::format("{}: dt_init_min {} must be above 0 and at most dt_init_max {}",
                                 where, dt_init_min, dt_init_max));
  }
  if (!(A_init_min > 0 && A_init_min <= A_init_max)) {
    throw UsageError(fmt::format("{}: A_init_min {} must be above 0 and at most A_init_max {}",
                                 where, A_init_min, A_init_max));
  }
  if (!(dt_min < dt_max)) {
    throw UsageError(fmt::format("{}: dt_min {} must be below dt_max {}", where, dt_min, dt_max));
  }
}

Mamba2::Mamba2(const LayerBuild& build, const Config& config)
    : store_(build.store),
      config_(config),
      norm_eps_(build.norm_eps),
      D_(build.d_model),
      E_(config.num_heads(build.d_model) * config.head_dim),
      H_(config.num_heads(build.d_model)),
      P_(config.head_dim),
      N_(config.state_dim),
      G_(config.groups),
      K_(config.conv_width),
      C_(E_ + 2 * G_ * N_),
      halo_(build, K_, C_),
      recurrence_(build, std::make_unique<BlockDecay>(H_, P_, N_)) {
  const auto name = [&](const char* suffix) { return build.prefix + suffix; };
  const double conv_bound = 1 / std::sqrt(double(K_));
  in_proj_ = Linear(build, "in_proj",
                    {.in = D_,
                     .out = E_ + C_ + H_,
                     .bias = config.proj_bias,
                     .parts = {{"z", E_}, {"x", E_}, {"B", G_ * N_}, {"C", G_ * N_}, {"dt", H_}}});
  z_proj_ = in_proj_.outputs(0, E_);
  xbcdt_proj_ = in_proj_.outputs(E_, C_ + H_);
  conv_weight_ = store_.add(name("conv1d.weight"), {C_, K_}, uniform(conv_bound));
  if (config.conv_bias) {
    conv_bias_ = store_.add(name("conv1d.bias"), {C_}, uniform(conv_bound), kNoDecay);
  }
  dt_bias_ =
      store_.add(name("dt_bias"), {H_},
                 dt_bias(config.dt_init_min, config.dt_init_max, config.dt_init_floor), kNoDecay);
  A_log_ = store_.add(name("A_log"), {H_}, A_log_uniform(config.A_init_min, config.A_init_max),
                      kNoDecay);
  D_skip_ = store_.add(name("D"), {H_}, constant(1), kNoDecay);
  norm_ = store_.add(name("norm.weight"), {E_}, constant(1), kNoDecay);
  out_proj_ = Linear(build, "out_proj",
                     {.in = E_,
                      .out = D_,
                      .bias = config.proj_bias,
                      .scale = 1 / std::sqrt(double(build.num_residuals))});
}

Mamba2::Chunked Mamba2::allocate_chunked(const Context& ctx, int64_t B, int64_t T,
                                         DType dtype) const {
  Arena& scratch = *ctx.scratch;
  return {.chunk = chunk_to_take(ctx.device, dtype, P_, N_, config_.chunk),
          .xbc = scratch.alloc({B, T, C_}, dtype),
          .dt = scratch.alloc({B, T, H_}, stat_dtype(dtype)),
          .cum = scratch.alloc({B, T, H_}, stat_dtype(dtype))};
}

void Mamba2::chunk_decays(const Context& ctx, const Rows& rows, const TensorView& zxbcdt,
                          const Chunked& s) const {
  chunk_cumsum_forward(ctx, {.dt_raw = dt_of(zxbcdt),
                             .dt_bias = store_.value(dt_bias_),
                             .A_log = store_.value(A_log_),
                             .doc_begin = rows.local_doc_begin,
                             .dt = s.dt,
                             .cum = s.cum,
                             .chunk = s.chunk,
                             .dt_min = config_.dt_min,
                             .dt_max = config_.dt_max});
}

void Mamba2::convolve(const Context& ctx, const Rows& rows, const TensorView& zxbcdt,
                      const TensorView& halo, const Chunked& s) const {
  causal_conv1d_forward(ctx, {.x = xbc_of(zxbcdt),
                              .weight = store_.value(conv_weight_),
                              .bias = store_.optional_value(conv_bias_),
                              .doc_begin = rows.local_doc_begin,
                              .halo = halo,
                              .y = s.xbc});
}

void Mamba2::gated_norm(const Context& ctx, const TensorView& y, const TensorView& zxbcdt,
                        const TensorView& out) const {
  gated_rms_norm_forward(ctx, {.x = y.reshape(out.dims),
                               .z = z_of(zxbcdt),
                               .weight = store_.value(norm_),
                               .y = out,
                               .groups = G_,
                               .gate = config_.gate,
                               .eps = norm_eps_});
}

// Several ranks project what others wait for first, and the gate while it travels. (dt as a product
// of its own would take longer than the halo that it hides.)
std::unique_ptr<Saved> Mamba2::forward(const Context& ctx, const Rows& rows,
                                       const LayerForward& io) const {
  const auto [B, T, D] = io.x.shape<3>("x: (B, T, D)");
  const DType dtype = io.x.dtype;
  auto saved = std::make_unique<SavedTensors>();
  saved->x = io.x;
  saved->zxbcdt = ctx.saved->alloc_padded_rows({B, T, E_ + C_ + H_}, dtype);
  saved->y = ctx.saved->alloc({B, T, H_, P_}, dtype);
  saved->passed = passed_of(ctx, io, received_spec(rows));
  const TensorView& zxbcdt = saved->zxbcdt;
  const Passed& passed = saved->passed;
  const bool in_parts = recurrence_.ranks() > 1;
  if (in_parts) {
    xbcdt_proj_.forward(ctx, io.x, xbcdt_of(zxbcdt));
  } else {
    in_proj_.forward(ctx, io.x, zxbcdt);
  }

  const ArenaScope scope(*ctx.scratch);
  const Chunked s = allocate_chunked(ctx, B, T, dtype);
  halo_.forward(ctx, rows,
                {.x = xbc_of(zxbcdt), .passed = passed, .carried = io.carried, .meanwhile = [&] {
                   chunk_decays(ctx, rows, zxbcdt, s);
                 }});
  convolve(ctx, rows, zxbcdt, passed.halo, s);
  const auto find_state = [&](const StateFold& fold) -> ConstTensorView {
    recurrence_.forward(ctx, rows,
                        {.passed = passed, .carried = io.carried, .fold = fold, .meanwhile = [&] {
                           if (in_parts) z_proj_.forward(ctx, io.x, z_of(zxbcdt));
                         }});
    return passed.state;
  };
  ssd_forward(ctx, {.x = x_of(s.xbc),
                    .B = B_of(s.xbc),
                    .C = C_of(s.xbc),
                    .dt = s.dt,
                    .cum = s.cum,
                    .D = store_.value(D_skip_),
                    .doc_begin = rows.local_doc_begin,
                    .find_initial = find_state,
                    .y = saved->y,
                    .final_state = recurrence_.final_state(io.carried),
                    .chunk = s.chunk});
  const TensorView normed = ctx.scratch->alloc({B, T, E_}, dtype);
  gated_norm(ctx, saved->y, saved->zxbcdt, normed);
  out_proj_.forward(ctx, normed, io.y);
  return saved;
}

void Mamba2::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                      const Saved& base) const {
  const auto& saved = static_cast<const SavedTensors&>(base);
  const int64_t B = io.dy.dim(0);
  const int64_t T = io.dy.dim(1);
  const DType dtype = io.dy.dtype;
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView dzxbcdt = scratch.alloc_padded_rows({B, T, E_ + C_ + H_}, dtype);
  const TensorView dy = scratch.alloc({B, T, E_}, dtype);
  out_proj_.backward_data(ctx, io.dy, dy);
  gated_rms_norm_backward(ctx, {.dy = dy,
                                .x = saved.y.reshape({B, T, E_}),
                                .z = z_of(saved.zxbcdt),
                                .weight = store_.value(norm_),
                                .dx = dy,
                                .dz = z_of(dzxbcdt),
                                .dweight = store_.grad(norm_),
                                .groups = G_,
                                .gate = config_.gate,
                                .eps = norm_eps_});
  const TensorView dhalo =
      saved.passed.halo ? scratch.alloc(saved.passed.halo.dims, dtype) : TensorView{};
  const bool in_parts = recurrence_.ranks() > 1;
  scan_backward(ctx, rows, saved, dy.reshape({B, T, H_, P_}), dzxbcdt, dhalo, [&] {
    if (in_parts) z_proj_.backward_weight(ctx, saved.x, z_of(dzxbcdt));
  });
  halo_.backward(ctx, rows, dhalo, xbc_of(dzxbcdt), [&] {
    const ArenaScope norm_scope(scratch);
    const TensorView normed = scratch.alloc({B, T, E_}, dtype);
    gated_norm(ctx, saved.y, saved.zxbcdt, normed);
    out_proj_.backward_weight(ctx, normed, io.dy);
  });
  const Linear& rest = in_parts ? xbcdt_proj_ : in_proj_;
  rest.backward_weight(ctx, saved.x, in_parts ? xbcdt_of(dzxbcdt) : dzxbcdt);
  in_proj_.backward_data(ctx, dzxbcdt, io.dx);
}

void Mamba2::scan_backward(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                           const TensorView& dy, const TensorView& dzxbcdt, const TensorView& dhalo,
                           const Meanwhile& meanwhile) const {
  const int64_t B = dy.dim(0);
  const int64_t T = dy.dim(1);
  Arena& scratch = *ctx.scratch;
  const ArenaScope scope(scratch);
  const Chunked s = allocate_chunked(ctx, B, T, dy.dtype);
  const int64_t M = num_chunks(T, s.chunk);
  const TensorView incoming = scratch.alloc({B, M, H_, P_, N_}, dy.dtype);
  const TensorView decay = scratch.alloc({B, M, H_}, s.cum.dtype);
  chunk_decays(ctx, rows, saved.zxbcdt, s);
  convolve(ctx, rows, saved.zxbcdt, saved.passed.halo, s);
  entering_states(ctx, {.x = x_of(s.xbc),
                        .B = B_of(s.xbc),
                        .dt = s.dt,
                        .cum = s.cum,
                        .doc_begin = rows.local_doc_begin,
                        .initial = saved.passed.state,
                        .incoming = incoming,
                        .decay = decay,
                        .chunk = s.chunk});
  const TensorView dxbc = scratch.alloc({B, T, C_}, dy.dtype);
  const TensorView ddt = scratch.alloc(s.dt.dims, s.dt.dtype);
  const TensorView dcum = scratch.alloc(s.cum.dims, s.cum.dtype);
  const auto find_dfinal = [&](const GradientFold& fold) -> ConstTensorView {
    return recurrence_.backward(ctx, rows, saved.passed, fold, meanwhile);
  };
  ssd_backward(ctx, {.dy = dy,
                     .x = x_of(s.xbc),
                     .B = B_of(s.xbc),
                     .C = C_of(s.xbc),
                     .dt = s.dt,
                     .cum = s.cum,
                     .D = store_.value(D_skip_),
                     .doc_begin = rows.local_doc_begin,
                     .incoming = incoming,
                     .decay = decay,
                     .find_dfinal = find_dfinal,
                     .dx = x_of(dxbc),
                     .dB = B_of(dxbc),
                     .dC = C_of(dxbc),
                     .ddt = ddt,
                     .dcum = dcum,
                     .dD = store_.grad(D_skip_),
                     .chunk = s.chunk});
  chunk_cumsum_backward(ctx, {.ddt = ddt,
                              .dcum = dcum,
                              .dt_raw = dt_of(saved.zxbcdt),
                              .dt_bias = store_.value(dt_bias_),
                              .A_log = store_.value(A_log_),
                              .doc_begin = rows.local_doc_begin,
                              .ddt_raw = dt_of(dzxbcdt),
                              .ddt_bias = store_.grad(dt_bias_),
                              .dA_log = store_.grad(A_log_),
                              .chunk = s.chunk,
                              .dt_min = config_.dt_min,
                              .dt_max = config_.dt_max});
  causal_conv1d_backward(ctx, {.dy = dxbc,
                               .x = xbc_of(saved.zxbcdt),
                               .weight = store_.value(conv_weight_),
                               .bias = store_.optional_value(conv_bias_),
                               .doc_begin = rows.local_doc_begin,
                               .halo = saved.passed.halo,
                               .dx = xbc_of(dzxbcdt),
                               .dweight = store_.grad(conv_weight_),
                               .dbias = store_.optional_grad(conv_bias_),
                               .dhalo = dhalo});
}

std::vector<StateTensor> Mamba2::received_spec(const Rows& rows) const {
  std::vector<StateTensor> spec = halo_.received_spec(rows);
  for (StateTensor& tensor : recurrence_.received_spec(rows)) spec.push_back(std::move(tensor));
  return spec;
}

std::vector<StateTensor> Mamba2::state_spec(int64_t rows, int64_t) const {
  return {{"conv", {rows, K_ - 1, C_}, store_.dtype()},
          {"ssm", {rows, H_, P_, N_}, stat_dtype(store_.dtype())}};
}

void Mamba2::step(const Context& ctx, const LayerStep& io) const {
  const int64_t B = io.x.dim(0);
  const DType dtype = io.x.dtype;
  const ArenaScope scope(*ctx.scratch);
  const TensorView zxbcdt = ctx.scratch->alloc({B, E_ + C_ + H_}, dtype);
  const TensorView xbc = ctx.scratch->alloc({B, C_}, dtype);
  const TensorView y = ctx.scratch->alloc({B, H_, P_}, dtype);
  const TensorView normed = ctx.scratch->alloc({B, E_}, dtype);
  in_proj_.forward(ctx, io.x, zxbcdt);
  causal_conv1d_step(ctx, {.x = xbc_of(zxbcdt),
                           .weight = store_.value(conv_weight_),
                           .bias = store_.optional_value(conv_bias_),
                           .tail = io.states[0],
                           .y = xbc});
  // A (B, H, P) view has one stride for its (batch, head) rows, so the slices are packed first.
  const auto packed = [&](int64_t begin, const Dims& dims) {
    const TensorView slice = ctx.scratch->alloc({B, dims[1] * dims[2]}, dtype);
    copy(ctx, xbc.columns(begin, {slice.dim(1)}), slice);
    return slice.reshape(dims);
  };
  ssd_step(ctx, {.x = packed(0, {B, H_, P_}),
                 .dt_raw = dt_of(zxbcdt),
                 .dt_bias = store_.value(dt_bias_),
                 .A_log = store_.value(A_log_),
                 .B = packed(E_, {B, G_, N_}),
                 .C = packed(E_ + G_ * N_, {B, G_, N_}),
                 .D = store_.value(D_skip_),
                 .state = io.states[1],
                 .y = y,
                 .dt_min = config_.dt_min,
                 .dt_max = config_.dt_max});
  gated_norm(ctx, y, zxbcdt, normed);
  out_proj_.forward(ctx, normed, io.y);
}

std::string Mamba2::describe_kernels(int64_t, int64_t row_tokens) const {
  const Device device = store_.device();
  const DType dtype = store_.dtype();
  const int64_t ranks = recurrence_.ranks();
  const int64_t chunk = chunk_to_take(device, dtype, P_, N_, config_.chunk);
  return joined(
      describe_products(device, dtype, {D_, E_}), describe_convolution(device, C_, K_, E_),
      describe_ssd(device, dtype, {.P = P_, .N = N_, .chunk = chunk, .T = row_tokens / ranks}),
      describe_gated_norm(device, dtype, E_ / G_));
}

// Projections, then the scan by the customary count of 7 E N.
double Mamba2::flops_per_token(int64_t) const {
  return 2.0 * D_ * (E_ + C_ + H_) + 2.0 * E_ * D_ + 7.0 * E_ * N_;
}

}  // namespace sluice
