// Mamba, "S6" (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
// 2023, section 3.4), with the inner norms of Jamba and Falcon-Mamba as options.
//
//   [x, z] = in_proj(u);  x = silu(conv1d(x));  [dt, B, C] = x_proj(x), normalised if asked for
//   out = out_proj(selective_scan(x, dt_proj(dt), A, B, C, D, z))
// E inner width, N state dim, K conv width, R rank of the step.
#pragma once

#include <array>
#include <span>

#include "kernels/core/fields.h"
#include "layers/layer.h"
#include "layers/layer_build.h"
#include "layers/linear.h"
#include "layers/mixers/convolution_halo.h"
#include "layers/mixers/linear_recurrence.h"

namespace sluice {

enum class InnerNorm : uint8_t {
  none,
  plain,    // weightless RMS on dt, B, C (Falcon-Mamba)
  learned,  // with weights (Jamba)
};
std::span<const char* const> enum_names(InnerNorm);

struct MambaConfig {
  int64_t state_dim = 16;
  int64_t conv_width = 4;
  int64_t expand = 2;
  int64_t inner = 0;
  int64_t dt_rank = 0;
  bool conv_bias = true;
  bool proj_bias = false;
  InnerNorm inner_norm = InnerNorm::none;
  double inner_norm_eps = 1e-6;
  double dt_init_min = 1e-3;
  double dt_init_max = 1e-1;
  double dt_init_floor = 1e-4;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "state_dim", .help = "state size of a channel (N)", .min = 1}, state_dim);
    v(Field{.name = "conv_width", .help = "taps of the causal convolution (K)", .min = 1},
      conv_width);
    v(Field{.name = "expand", .help = "inner width over d_model, where inner is 0", .min = 1},
      expand);
    v(Field{.name = "inner", .help = "inner width (E); 0: expand * d_model", .min = 0}, inner);
    v(Field{.name = "dt_rank", .help = "rank of the step (R); 0: ceil(d_model / 16)", .min = 0},
      dt_rank);
    v(Field{.name = "conv_bias", .help = "bias of the convolution"}, conv_bias);
    v(Field{.name = "proj_bias", .help = "biases of in_proj and out_proj"}, proj_bias);
    v(Field{.name = "inner_norm", .help = "RMS norms on dt, B and C"}, inner_norm);
    v(Field{.name = "inner_norm_eps", .help = "epsilon of the inner norms", .min = 0},
      inner_norm_eps);
    v(Field{.name = "dt_init_min", .help = "smallest initial step", .min = 0}, dt_init_min);
    v(Field{.name = "dt_init_max", .help = "largest initial step", .min = 0}, dt_init_max);
    v(Field{.name = "dt_init_floor", .help = "initial steps are clamped from below", .min = 0},
      dt_init_floor);
  }
  void validate(const std::string& where, int64_t d_model) const;
};

class Mamba final : public Layer {
 public:
  using Config = MambaConfig;
  static constexpr const char* kName = "mamba";
  static constexpr char kLetter = 'S';
  static constexpr bool kIsMixer = true;

  Mamba(const LayerBuild& build, const Config& config);

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
  struct Recomputed;
  struct Slice {
    int64_t begin, width;  // columns of dtBC
    ParameterId weight;    // of its inner norm
  };
  std::array<Slice, 3> inner_slices() const {
    return {{{0, R_, dt_norm_}, {R_, N_, B_norm_}, {R_ + N_, N_, C_norm_}}};
  }
  TensorView B_of(const TensorView& dtBC) const { return dtBC.columns(R_, {N_}); }
  TensorView C_of(const TensorView& dtBC) const { return dtBC.columns(R_ + N_, {N_}); }
  TensorView x_of(const TensorView& xz) const { return xz.columns(0, {E_}); }
  TensorView z_of(const TensorView& xz) const { return xz.columns(E_, {E_}); }
  void convolve(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                const TensorView& u) const;
  Recomputed scan_inputs(const Context& ctx, const TensorView& u, const TensorView& dtBC) const;
  void scan_backward(const Context& ctx, const Rows& rows, const SavedTensors& saved,
                     const ConstTensorView& dout, const TensorView& dxz,
                     const TensorView& dhalo) const;
  void inner_norm(const Context& ctx, const TensorView& dtBC, const TensorView& out,
                  const TensorView& rstd) const;
  void inner_norm_backward(const Context& ctx, const TensorView& dtBC, const TensorView& rstd,
                           const TensorView& ddtBC) const;

  ParameterStore& store_;
  Config config_;
  int64_t D_, E_, N_, K_, R_;
  Linear in_proj_, x_proj_, dt_proj_, out_proj_;
  Linear x_part_, z_part_, z_left_, z_right_;  // of in_proj; z also in two halves
  ParameterId conv_weight_, conv_bias_, dt_bias_, A_log_, D_skip_;
  ParameterId dt_norm_, B_norm_, C_norm_;  // inner_norm: learned
  ConvolutionHalo halo_;
  LinearRecurrence recurrence_;
};

}  // namespace sluice
