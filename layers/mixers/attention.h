// Causal softmax attention with grouped queries (Ainslie et al., "GQA", 2023), rotary positions on
// all or part of each head (Su et al., "RoFormer", 2021), and an optional sliding window.
//
//   [q, k, v] = qkv(u);  rope(q), rope(k);  out = out_proj(attention(q, k, v))
// Hq query heads, Hkv key-value heads, hd head dim. Over several sequence ranks the scores are
// computed as attention_scores.h says; the choice is made when the layer is built.
#pragma once

#include "kernels/core/fields.h"
#include "layers/layer.h"
#include "layers/layer_build.h"
#include "layers/linear.h"
#include "layers/mixers/attention_scores.h"

namespace sluice {

struct RopeConfig {
  double theta = 10000;
  double fraction = 1;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "theta", .help = "base of the rotation's wavelengths", .min = 1}, theta);
    v(Field{.name = "fraction",
            .help = "rotated share of a head; 0: no positions",
            .min = 0,
            .max = 1},
      fraction);
  }
};

struct AttentionConfig {
  int64_t heads = 12;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
  bool bias = false;
  AttentionBackend backend = AttentionBackend::own;
  RopeConfig rope;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "heads", .help = "query heads (Hq)", .min = 1}, heads);
    v(Field{.name = "kv_heads", .help = "key-value heads (Hkv); 0: heads", .min = 0}, kv_heads);
    v(Field{.name = "head_dim", .help = "width of a head; 0: d_model / heads", .min = 0}, head_dim);
    v(Field{.name = "window", .help = "tokens a query sees, itself included; 0: all", .min = 0},
      window);
    v(Field{.name = "bias", .help = "biases of the projections"}, bias);
    v(Field{.name = "backend", .help = "kernels on a GPU: own, or cudnn where it is found"},
      backend);
    v(Field{.name = "rope", .help = "rotary positions"}, rope);
  }
  void validate(const std::string& where, int64_t d_model) const;
};

class Attention final : public Layer {
 public:
  using Config = AttentionConfig;
  static constexpr const char* kName = "attention";
  static constexpr char kLetter = '*';
  static constexpr bool kIsMixer = true;

  Attention(const LayerBuild& build, const Config& config);

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                 const LayerForward& io) const override;
  void backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                const Saved& saved) const override;
  std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const override;
  void step(const Context& ctx, const LayerStep& io) const override;
  double flops_per_token(int64_t row_tokens) const override;
  std::string describe_exchange() const override { return scores_->describe(); }
  std::string describe_kernels(int64_t rows, int64_t row_tokens) const override;

 private:
  struct SavedTensors;
  void rotate(const Context& ctx, const TensorView& qkv, const ConstTensorView& positions,
              bool backward) const;
  int64_t cache_tokens(int64_t max_tokens) const;

  ParameterStore& store_;
  Config config_;
  int64_t D_;
  AttentionShape shape_;
  int64_t rotary_;  // columns of a head
  std::unique_ptr<AttentionScores> scores_;
  Linear qkv_, out_proj_;
};

}  // namespace sluice
