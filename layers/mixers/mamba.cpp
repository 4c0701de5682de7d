// B batch, T tokens on this rank, D model, E inner, N state dim, K conv width, R rank of the step
#include "layers/mixers/mamba.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/core/plain_path.h"
#include "kernels/gemm/gemm.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/selective_scan/selective_scan.h"

namespace sluice {

// The convolution, the inner norms, the steps and the scan's output are computed again in the
// backward: 2E + R + 2N + E N / kScanSpan values a token are kept, instead of 6E.
struct Mamba::SavedTensors : Saved {
  ConstTensorView x;       // (B, T, D)
  TensorView xz;           // (B, T, 2E)
  TensorView dtBC;         // (B, T, R + 2N), of x_proj, before the inner norms
  TensorView span_states;  // (B, spans, E, N)
  Passed passed;  // halo (B, K-1, E), state (B, E, N), transitions: sums of dt (ranks, B * E)
};

// What the scan reads, in scratch.
struct Mamba::Recomputed {
  TensorView u;      // (B, T, E), of the convolution
  TensorView dtBC;   // (B, T, R + 2N), after the inner norms
  TensorView rstd;   // (3, B * T) of dt, B, C; only with inner norms
  TensorView delta;  // (B, T, E)
};

namespace {

// A decay for every channel and state, exp(A * sum of dt). A is everywhere, so the sums travel.
class StepSum final : public BlockDecay {
 public:
  StepSum(const ParameterStore& store, ParameterId A_log, int64_t E, int64_t N)
      : BlockDecay(E * N, 1, 1), store_(store), A_log_(A_log), E_(E), N_(N) {}

  Dims state_dims(int64_t rows) const override { return {rows, E_, N_}; }
  int64_t packed_size(int64_t rows) const override { return rows * E_; }

 private:
  ConstTensorView unpack(const Context& ctx, const RankMaps& maps) const override {
    const int64_t count = maps.last - maps.first;
    const TensorView decay =
        ctx.scratch->alloc({count, maps.rows.rows * E_ * N_}, maps.transitions.dtype);
    selective_scan_decay(
        ctx, {.dt_sum = maps.transitions.row_range(maps.first, count),
              .A_log = store_.value(A_log_),
              .doc_begin = maps.rows.doc_begin,
              .cuts = std::span(maps.rows.cuts).subspan(size_t(maps.first), size_t(count) + 1),
              .decay = decay});
    return decay;
  }

  const ParameterStore& store_;
  ParameterId A_log_;
  int64_t E_, N_;
};

}  // namespace

std::span<const char* const> enum_names(InnerNorm) {
  static constexpr std::array<const char*, 3> kNames = {"none", "plain", "learned"};
  return kNames;
}

void MambaConfig::validate(const std::string& where, int64_t) const {
  if (!(dt_init_min > 0 && dt_init_min <= dt_init_max)) {
    throw UsageError(fmt::format("{}: dt_init_min {} must be above 0 and at most dt_init_max {}",
                                 where, dt_init_min, dt_init_max));
  }
}

Mamba::Mamba(const LayerBuild& build, const Config& config)
    : store_(build.store),
      config_(config),
      D_(build.d_model),
      E_(config.inner > 0 ? config.inner : config.expand * build.d_model),
      N_(config.state_dim),
      K_(config.conv_width),
      R_(config.dt_rank > 0 ? config.dt_rank : (build.d_model + 15) / 16),
      halo_(build, K_, E_) {
  const auto name = [&](const char* suffix) { return build.prefix + suffix; };
  const double conv_bound = 1 / std::sqrt(double(K_));
  in_proj_ =
      Linear(build, "in_proj",
             {.in = D_, .out = 2 * E_, .bias = config.proj_bias, .parts = {{"x", E_}, {"z", E_}}});
  x_part_ = in_proj_.outputs(0, E_);
  z_part_ = in_proj_.outputs(E_, E_);
  z_left_ = z_part_.outputs(0, E_ / 2);
  z_right_ = z_part_.outputs(E_ / 2, E_ - E_ / 2);
  conv_weight_ = store_.add(name("conv1d.weight"), {E_, K_}, uniform(conv_bound));
  if (config.conv_bias) {
    conv_bias_ = store_.add(name("conv1d.bias"), {E_}, uniform(conv_bound), kNoDecay);
  }
  x_proj_ = Linear(build, "x_proj",
                   {.in = E_, .out = R_ + 2 * N_, .parts = {{"dt", R_}, {"B", N_}, {"C", N_}}});
  if (config.inner_norm == InnerNorm::learned) {
    dt_norm_ = store_.add(name("dt_norm.weight"), {R_}, constant(1), kNoDecay);
    B_norm_ = store_.add(name("B_norm.weight"), {N_}, constant(1), kNoDecay);
    C_norm_ = store_.add(name("C_norm.weight"), {N_}, constant(1), kNoDecay);
  }
  dt_proj_ = Linear(build, "dt_proj", {.in = R_, .out = E_});
  dt_bias_ =
      store_.add(name("dt_proj.bias"), {E_},
                 dt_bias(config.dt_init_min, config.dt_init_max, config.dt_init_floor), kNoDecay);
  A_log_ = store_.add(name("A_log"), {E_, N_}, A_log_s4d(N_), kNoDecay);
  recurrence_ = LinearRecurrence(build, std::make_unique<StepSum>(store_, A_log_, E_, N_));
  D_skip_ = store_.add(name("D"), {E_}, constant(1), kNoDecay);
  out_proj_ = Linear(build, "out_proj",
                     {.in = E_,
                      .out = D_,
                      .bias = config.proj_bias,
                      .scale = 1 / std::sqrt(double(build.num_residuals))});
}

void Mamba::inner_norm(const Context& ctx, const TensorView& dtBC, const TensorView& out,
                       const TensorView& rstd) const {
  const std::array<Slice, 3> slices = inner_slices();
  for (size_t i = 0; i < slices.size(); ++i) {
    const auto& [begin, width, weight] = slices[i];
    rms_norm_forward(ctx, {.x = dtBC.columns(begin, {width}),
                           .weight = store_.optional_value(weight),
                           .y = out.columns(begin, {width}),
                           .rstd = rstd.slice(i),
                           .eps = config_.inner_norm_eps});
  }
}

void Mamba::inner_norm_backward(const Context& ctx, const TensorView& dtBC, const TensorView& rstd,
                                const TensorView& ddtBC) const {
  const std::array<Slice, 3> slices = inner_slices();
  for (size_t i = 0; i < slices.size(); ++i) {
    const auto& [begin, width, weight] = slices[i];
    const TensorView gradient = ddtBC.columns(begin, {width});
    rms_norm_backward(ctx, {.dy = gradient,
                            .sum = dtBC.columns(begin, {width}),
                            .weight = store_.optional_value(weight),
                            .rstd = rstd.slice(i),
                            .dx = gradient,
                            .dweight = store_.optional_grad(weight)});
  }
}

void Mamba::convolve(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                     const TensorView& u) const {
  causal_conv1d_forward(ctx, {.x = x_of(saved.xz),
                              .weight = store_.value(conv_weight_),
                              .bias = store_.optional_value(conv_bias_),
                              .doc_begin = rows.local_doc_begin,
                              .halo = saved.passed.halo,
                              .y = u});
}

Mamba::Recomputed Mamba::scan_inputs(const Context& ctx, const TensorView& u,
                                     const TensorView& dtBC) const {
  const int64_t B = u.dim(0);
  const int64_t T = u.dim(1);
  Recomputed r{.u = u, .dtBC = dtBC, .rstd = {}, .delta = {}};
  if (config_.inner_norm != InnerNorm::none) {
    r.dtBC = ctx.scratch->alloc(dtBC.dims, dtBC.dtype);
    r.rstd = ctx.scratch->alloc({3, B * T}, stat_dtype(dtBC.dtype));
    inner_norm(ctx, dtBC, r.dtBC, r.rstd);
  }
  r.delta = ctx.scratch->alloc({B, T, E_}, dtBC.dtype);
  dt_proj_.forward(ctx, r.dtBC.columns(0, {R_}), r.delta);
  return r;
}

// Several ranks project x, which others wait for, first, and z while something travels.
std::unique_ptr<Saved> Mamba::forward(const Context& ctx, const Rows& rows,
                                      const LayerForward& io) const {
  const auto [B, T, D] = io.x.shape<3>("x: (B, T, D)");
  const DType dtype = io.x.dtype;
  auto saved = std::make_unique<SavedTensors>();
  saved->x = io.x;
  saved->xz = ctx.saved->alloc_padded_rows({B, T, 2 * E_}, dtype);
  saved->dtBC = ctx.saved->alloc({B, T, R_ + 2 * N_}, dtype);
  saved->span_states = ctx.saved->alloc({B, scan_spans(T), E_, N_}, stat_dtype(dtype));
  saved->passed = passed_of(ctx, io, received_spec(rows));
  const TensorView& xz = saved->xz;
  const bool in_parts = recurrence_.ranks() > 1;
  const auto project = [&](const Linear& part, const TensorView& out) {
    if (in_parts) part.forward(ctx, io.x, out);
  };
  if (!in_parts) in_proj_.forward(ctx, io.x, xz);
  project(x_part_, x_of(xz));

  const ArenaScope scope(*ctx.scratch);
  const TensorView u = ctx.scratch->alloc({B, T, E_}, dtype);
  const TensorView y = ctx.scratch->alloc({B, T, E_}, dtype);
  halo_.forward(ctx, rows,
                {.x = x_of(xz), .passed = saved->passed, .carried = io.carried, .meanwhile = [&] {
                   project(z_left_, xz.columns(E_, {E_ / 2}));
                 }});
  convolve(ctx, rows, *saved, u);
  x_proj_.forward(ctx, u, saved->dtBC);
  const Recomputed r = scan_inputs(ctx, u, saved->dtBC);
  const auto fold = [&, B = B](const TensorView& state, const TensorView& dt_sum) {
    selective_scan_fold(ctx, {.u = r.u,
                              .delta = r.delta,
                              .dt_bias = store_.value(dt_bias_),
                              .A_log = store_.value(A_log_),
                              .B = B_of(r.dtBC),
                              .doc_begin = rows.local_doc_begin,
                              .state = state,
                              .dt_sum = dt_sum.reshape({B, E_})});
  };
  recurrence_.forward(
      ctx, rows, {.passed = saved->passed, .carried = io.carried, .fold = fold, .meanwhile = [&] {
                    project(z_right_, xz.columns(E_ + E_ / 2, {E_ - E_ / 2}));
                  }});
  selective_scan_forward(ctx, {.u = r.u,
                               .delta = r.delta,
                               .dt_bias = store_.value(dt_bias_),
                               .A_log = store_.value(A_log_),
                               .B = B_of(r.dtBC),
                               .C = C_of(r.dtBC),
                               .D = store_.value(D_skip_),
                               .z = z_of(xz),
                               .doc_begin = rows.local_doc_begin,
                               .initial_state = saved->passed.state,
                               .y = y,
                               .span_states = saved->span_states,
                               .final_state = recurrence_.final_state(io.carried)});
  out_proj_.forward(ctx, y, io.y);
  return saved;
}

void Mamba::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                     const Saved& base) const {
  const auto& saved = static_cast<const SavedTensors&>(base);
  const int64_t B = io.dy.dim(0);
  const int64_t T = io.dy.dim(1);
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView dxz = scratch.alloc_padded_rows({B, T, 2 * E_}, io.dy.dtype);
  const TensorView dhalo =
      saved.passed.halo ? scratch.alloc(saved.passed.halo.dims, io.dy.dtype) : TensorView{};
  scan_backward(ctx, rows, saved, io.dy, dxz, dhalo);
  const bool in_parts = recurrence_.ranks() > 1;
  halo_.backward(ctx, rows, dhalo, x_of(dxz), [&] {
    if (!in_parts) return;
    z_part_.backward_weight(ctx, saved.x, z_of(dxz));
    z_part_.backward_data(ctx, z_of(dxz), io.dx);
  });
  const Linear& rest = in_parts ? x_part_ : in_proj_;
  const TensorView drest = in_parts ? x_of(dxz) : dxz;
  rest.backward_weight(ctx, saved.x, drest);
  rest.backward_data(ctx, drest, io.dx, /*accumulate=*/in_parts);
}

// All but in_proj. The gradient of the entering state needs neither u nor y, so what travels is
// ready before they are computed again.
void Mamba::scan_backward(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                          const ConstTensorView& dout, const TensorView& dxz,
                          const TensorView& dhalo) const {
  const int64_t B = dxz.dim(0);
  const int64_t T = dxz.dim(1);
  const DType dtype = dxz.dtype;
  Arena& scratch = *ctx.scratch;
  const ArenaScope scope(scratch);
  const TensorView u = scratch.alloc({B, T, E_}, dtype);
  const Recomputed r = scan_inputs(ctx, u, saved.dtBC);
  const TensorView dy = scratch.alloc({B, T, E_}, dtype);
  const TensorView y = scratch.alloc({B, T, E_}, dtype);
  const TensorView du = scratch.alloc({B, T, E_}, dtype);
  const TensorView ddelta = scratch.alloc({B, T, E_}, dtype);
  const TensorView ddtBC = scratch.alloc({B, T, R_ + 2 * N_}, dtype);
  out_proj_.backward_data(ctx, dout, dy);
  const auto reverse_fold = [&](const TensorView& dinitial) {
    selective_scan_reverse_fold(ctx, {.dy = dy,
                                      .delta = r.delta,
                                      .dt_bias = store_.value(dt_bias_),
                                      .A_log = store_.value(A_log_),
                                      .C = C_of(r.dtBC),
                                      .z = z_of(saved.xz),
                                      .doc_begin = rows.local_doc_begin,
                                      .dinitial_state = dinitial});
  };
  const TensorView dfinal = recurrence_.backward(ctx, rows, saved.passed, reverse_fold,
                                                 [&] { convolve(ctx, rows, saved, u); });
  selective_scan_backward(ctx, {.dy = dy,
                                .u = r.u,
                                .delta = r.delta,
                                .dt_bias = store_.value(dt_bias_),
                                .A_log = store_.value(A_log_),
                                .B = B_of(r.dtBC),
                                .C = C_of(r.dtBC),
                                .D = store_.value(D_skip_),
                                .z = z_of(saved.xz),
                                .doc_begin = rows.local_doc_begin,
                                .span_states = saved.span_states,
                                .dfinal_state = dfinal,
                                .du = du,
                                .ddelta = ddelta,
                                .dB = B_of(ddtBC),
                                .dC = C_of(ddtBC),
                                .dz = z_of(dxz),
                                .y = y,
                                .ddt_bias = store_.grad(dt_bias_),
                                .dA_log = store_.grad(A_log_),
                                .dD = store_.grad(D_skip_)});
  out_proj_.backward_weight(ctx, y, dout);
  dt_proj_.backward_weight(ctx, r.dtBC.columns(0, {R_}), ddelta);
  dt_proj_.backward_data(ctx, ddelta, ddtBC.columns(0, {R_}));
  if (config_.inner_norm != InnerNorm::none) inner_norm_backward(ctx, saved.dtBC, r.rstd, ddtBC);
  x_proj_.backward_weight(ctx, u, ddtBC);
  x_proj_.backward_data(ctx, ddtBC, du, /*accumulate=*/true);
  causal_conv1d_backward(ctx, {.dy = du,
                               .x = x_of(saved.xz),
                               .weight = store_.value(conv_weight_),
                               .bias = store_.optional_value(conv_bias_),
                               .doc_begin = rows.local_doc_begin,
                               .halo = saved.passed.halo,
                               .dx = x_of(dxz),
                               .dweight = store_.grad(conv_weight_),
                               .dbias = store_.optional_grad(conv_bias_),
                               .dhalo = dhalo});
}

std::vector<StateTensor> Mamba::received_spec(const Rows& rows) const {
  std::vector<StateTensor> spec = halo_.received_spec(rows);
  for (StateTensor& tensor : recurrence_.received_spec(rows)) spec.push_back(std::move(tensor));
  return spec;
}

std::vector<StateTensor> Mamba::state_spec(int64_t rows, int64_t) const {
  return {{"conv", {rows, K_ - 1, E_}, store_.dtype()},
          {"ssm", {rows, E_, N_}, stat_dtype(store_.dtype())}};
}

void Mamba::step(const Context& ctx, const LayerStep& io) const {
  const int64_t B = io.x.dim(0);
  const DType dtype = io.x.dtype;
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView xz = scratch.alloc({B, 2 * E_}, dtype);
  const TensorView u = scratch.alloc({B, E_}, dtype);
  const TensorView dtBC = scratch.alloc({B, R_ + 2 * N_}, dtype);
  const TensorView rstd = scratch.alloc({3, B}, stat_dtype(dtype));
  const TensorView delta = scratch.alloc({B, E_}, dtype);
  const TensorView y = scratch.alloc({B, E_}, dtype);
  in_proj_.forward(ctx, io.x, xz);
  causal_conv1d_step(ctx, {.x = x_of(xz),
                           .weight = store_.value(conv_weight_),
                           .bias = store_.optional_value(conv_bias_),
                           .tail = io.states[0],
                           .y = u});
  x_proj_.forward(ctx, u, dtBC);
  if (config_.inner_norm != InnerNorm::none) inner_norm(ctx, dtBC, dtBC, rstd);
  dt_proj_.forward(ctx, dtBC.columns(0, {R_}), delta);
  selective_scan_step(ctx, {.u = u,
                            .delta = delta,
                            .dt_bias = store_.value(dt_bias_),
                            .A_log = store_.value(A_log_),
                            .B = B_of(dtBC),
                            .C = C_of(dtBC),
                            .D = store_.value(D_skip_),
                            .z = z_of(xz),
                            .state = io.states[1],
                            .y = y});
  out_proj_.forward(ctx, y, io.y);
}

std::string Mamba::describe_kernels(int64_t, int64_t) const {
  const Device device = store_.device();
  const DType dtype = store_.dtype();
  const int64_t z_part = recurrence_.ranks() > 1 ? E_ / 2 : E_;
  std::string norms;
  if (config_.inner_norm != InnerNorm::none) {
    for (const int64_t width : {R_, N_})
      norms = joined(norms, describe_norm(device, dtype, dtype, width, {R_, N_}));
  }
  return joined(describe_products(device, dtype, {D_, z_part, R_, R_ + 2 * N_}),
                describe_convolution(device, E_, K_, 0), norms,
                describe_scan(device, dtype, E_, N_, R_));
}

// Projections, then the scan by the customary count of 7 E N.
double Mamba::flops_per_token(int64_t) const {
  return 4.0 * D_ * E_ + 2.0 * E_ * (R_ + 2 * N_) + 2.0 * R_ * E_ + 2.0 * E_ * D_ + 7.0 * E_ * N_;
}

}  // namespace sluice
