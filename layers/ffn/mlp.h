// Dense feed-forward layer: down(activation(up(x))), with a gate beside up for SwiGLU (Shazeer,
// "GLU Variants Improve Transformer", 2020). F hidden width. Gate and up are one packed projection.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/core/fields.h"
#include "layers/layer.h"
#include "layers/layer_build.h"
#include "layers/linear.h"

namespace sluice {

struct MlpConfig {
  int64_t hidden = 2048;
  Activation activation = Activation::swiglu;
  bool bias = false;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "hidden", .help = "hidden width (F)", .min = 1}, hidden);
    v(Field{.name = "activation", .help = "swiglu, relu2 or gelu"}, activation);
    v(Field{.name = "bias", .help = "biases of the projections"}, bias);
  }
  void validate(const std::string& where, int64_t d_model) const;
};

class Mlp final : public Layer {
 public:
  using Config = MlpConfig;
  static constexpr const char* kName = "mlp";
  static constexpr char kLetter = '-';
  static constexpr bool kIsMixer = false;

  Mlp(const LayerBuild& build, const Config& config);

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                 const LayerForward& io) const override;
  void backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                const Saved& saved) const override;
  std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const override;
  void step(const Context& ctx, const LayerStep& io) const override;
  double flops_per_token(int64_t row_tokens) const override;
  std::string describe_kernels(int64_t rows, int64_t row_tokens) const override;

 private:
  struct SavedTensors;
  ConstTensorView as_expert(const Linear& linear) const;
  void project_up(const Context& ctx, const ConstTensorView& x, const TensorView& up,
                  const TensorView& hidden) const;

  ParameterStore& store_;
  Config config_;
  int64_t D_, F_, up_width_;  // up_width: 2F with a gate, else F
  Linear up_, down_;
};

}  // namespace sluice
