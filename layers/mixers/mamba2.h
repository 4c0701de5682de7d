// Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024, section 7.1).
//
//   [z, x, B, C, dt] = in_proj(u);  [x, B, C] = silu(conv1d([x, B, C]))
//   y = SSD(x, dt, A, B, C, D);  out = out_proj(gated_rms_norm(y, z))
// E = heads * head_dim inner width, H heads, P head dim, N state dim, G groups, K conv width.
#pragma once

#include "kernels/core/fields.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"
#include "layers/layer.h"
#include "layers/layer_build.h"
#include "layers/linear.h"
#include "layers/mixers/convolution_halo.h"
#include "layers/mixers/linear_recurrence.h"

namespace sluice {

struct Mamba2Config {
  int64_t head_dim = 64;
  int64_t state_dim = 128;
  int64_t groups = 1;
  int64_t conv_width = 4;
  int64_t chunk = 128;
  int64_t expand = 2;
  int64_t heads = 0;
  bool conv_bias = true;
  bool proj_bias = false;
  GateOrder gate = GateOrder::before;
  double dt_init_min = 1e-3;
  double dt_init_max = 1e-1;
  double dt_init_floor = 1e-4;
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();
  double A_init_min = 1;
  double A_init_max = 16;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "head_dim", .help = "width of a head (P)", .min = 1}, head_dim);
    v(Field{.name = "state_dim", .help = "state size of a head (N)", .min = 1}, state_dim);
    v(Field{.name = "groups", .help = "groups of heads that share B and C (G)", .min = 1}, groups);
    v(Field{.name = "conv_width", .help = "taps of the causal convolution (K)", .min = 1},
      conv_width);
    v(Field{.name = "chunk", .help = "tokens of an SSD chunk (Q), at most", .min = 1}, chunk);
    v(Field{.name = "expand", .help = "inner width over d_model, where heads is 0", .min = 1},
      expand);
    v(Field{.name = "heads", .help = "heads (H); 0: expand * d_model / head_dim", .min = 0}, heads);
    v(Field{.name = "conv_bias", .help = "bias of the convolution"}, conv_bias);
    v(Field{.name = "proj_bias", .help = "biases of in_proj and out_proj"}, proj_bias);
    v(Field{.name = "gate", .help = "gate before or after the norm"}, gate);
    v(Field{.name = "dt_init_min", .help = "smallest initial step", .min = 0}, dt_init_min);
    v(Field{.name = "dt_init_max", .help = "largest initial step", .min = 0}, dt_init_max);
    v(Field{.name = "dt_init_floor", .help = "initial steps are clamped from below", .min = 0},
      dt_init_floor);
    v(Field{.name = "dt_min", .help = "steps are clamped from below", .min = 0}, dt_min);
    v(Field{.name = "dt_max", .help = "steps are clamped from above", .min = 0}, dt_max);
    v(Field{.name = "A_init_min", .help = "smallest initial -A", .min = 0}, A_init_min);
    v(Field{.name = "A_init_max", .help = "largest initial -A", .min = 0}, A_init_max);
  }
  int64_t num_heads(int64_t d_model) const {
    return heads > 0 ? heads : expand * d_model / head_dim;
  }
  // Throws UsageError naming the keys under `where` that do not fit.
  void validate(const std::string& where, int64_t d_model) const;
};

class Mamba2 final : public Layer {
 public:
  using Config = Mamba2Config;
  static constexpr const char* kName = "mamba2";
  static constexpr char kLetter = 'M';
  static constexpr bool kIsMixer = true;

  Mamba2(const LayerBuild& build, const Config& config);

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                 const LayerForward& io) const override;
  void backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                const Saved& saved) const override;
  std::vector<StateTensor> received_spec(const Rows& rows) const override;
  std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const override;
  void step(const Context& ctx, const LayerStep& io) const override;
  double flops_per_token(int64_t row_tokens) const override;
  std::string describe_kernels(int64_t rows, int64_t row_tokens) const override;

 private:
  struct SavedTensors;
  struct Chunked;
  // Column slices of the projection, or of its gradient.
  TensorView z_of(const TensorView& zxbcdt) const { return zxbcdt.columns(0, {E_}); }
  TensorView xbcdt_of(const TensorView& zxbcdt) const { return zxbcdt.columns(E_, {C_ + H_}); }
  TensorView xbc_of(const TensorView& zxbcdt) const { return zxbcdt.columns(E_, {C_}); }
  TensorView dt_of(const TensorView& zxbcdt) const { return zxbcdt.columns(E_ + C_, {H_}); }
  TensorView x_of(const TensorView& xbc) const { return xbc.columns(0, {H_, P_}); }
  TensorView B_of(const TensorView& xbc) const { return xbc.columns(E_, {G_, N_}); }
  TensorView C_of(const TensorView& xbc) const { return xbc.columns(E_ + G_ * N_, {G_, N_}); }
  Chunked allocate_chunked(const Context& ctx, int64_t B, int64_t T, DType dtype) const;
  void chunk_decays(const Context& ctx, const Rows& rows, const TensorView& zxbcdt,
                    const Chunked& s) const;
  void convolve(const Context& ctx, const Rows& rows, const TensorView& zxbcdt,
                const TensorView& halo, const Chunked& s) const;
  void scan_backward(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                     const TensorView& dy, const TensorView& dzxbcdt, const TensorView& dhalo,
                     const Meanwhile& meanwhile) const;
  void gated_norm(const Context& ctx, const TensorView& y, const TensorView& zxbcdt,
                  const TensorView& out) const;

  ParameterStore& store_;
  Config config_;
  double norm_eps_;
  int64_t D_, E_, H_, P_, N_, G_, K_, C_;  // C = E + 2 G N channels of the convolution
  Linear in_proj_, out_proj_;
  Linear z_proj_, xbcdt_proj_;  // the parts of in_proj
  ParameterId conv_weight_, conv_bias_, dt_bias_, A_log_, D_skip_, norm_;
  ConvolutionHalo halo_;
  LinearRecurrence recurrence_;
};

}  // namespace sluice
