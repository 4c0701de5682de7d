// Mixture of experts (Shazeer et al., 2017), dropless or with a capacity per row, with optional
// shared experts that see every token (DeepSeekMoE, Dai et al., 2024).
//
//   y = sum over the k chosen experts of weight * expert(x)  +  shared(x)
// Losses: balance and z (kernels/topk_router). Bias balancing (Wang et al., "Auxiliary-Loss-Free
// Load Balancing", 2024): the choice bias of an expert moves by bias_rate against its load, once a
// step. X experts, F hidden width, k choices.
//
// Nothing depends on the layout. Over groups.experts the experts are cut and tokens travel
// (distributed_experts.h), while the shared expert is computed. Over groups.sequence one small
// gather tells every rank the choices of whole rows: the balance loss is of a row, and with a
// capacity a token competes with all that come before it in the row. With a capacity all ranks of
// groups.experts bring as many rows, and what travels has a fixed shape.
#pragma once

#include <functional>
#include <optional>

#include "kernels/activation/activation.h"
#include "kernels/core/fields.h"
#include "kernels/topk_router/topk_router.h"
#include "layers/ffn/distributed_experts.h"
#include "layers/ffn/mlp.h"
#include "layers/layer.h"
#include "layers/layer_build.h"

namespace sluice {

struct MoeConfig {
  int64_t experts = 8;
  int64_t top_k = 2;
  int64_t hidden = 2048;
  Activation activation = Activation::swiglu;
  RouterScore score = RouterScore::softmax;
  bool renormalise = false;
  double scale = 1;
  int64_t groups = 1;
  int64_t topk_group = 1;
  double capacity_factor = 0;
  int64_t shared_hidden = 0;
  double aux_loss = 0.01;
  double z_loss = 0.001;
  double bias_rate = 0;
  double receive_factor = 2;

  template <class V>
  void fields(V&& v) {
    v(Field{.name = "experts", .help = "routed experts (X)", .min = 1}, experts);
    v(Field{.name = "top_k", .help = "experts a token goes to", .min = 1}, top_k);
    v(Field{.name = "hidden", .help = "hidden width of an expert (F)", .min = 1}, hidden);
    v(Field{.name = "activation", .help = "swiglu, relu2 or gelu"}, activation);
    v(Field{.name = "score", .help = "softmax or sigmoid"}, score);
    v(Field{.name = "renormalise", .help = "chosen weights sum to 1"}, renormalise);
    v(Field{.name = "scale", .help = "factor on the routed output"}, scale);
    v(Field{.name = "groups", .help = "groups of experts (sigmoid)", .min = 1}, groups);
    v(Field{.name = "topk_group", .help = "groups a token may choose from", .min = 1}, topk_group);
    v(Field{.name = "capacity_factor",
            .help = "entries an expert takes from a row, over the mean; 0: no limit",
            .min = 0},
      capacity_factor);
    v(Field{.name = "shared_hidden",
            .help = "hidden width of the shared expert; 0: none",
            .min = 0},
      shared_hidden);
    v(Field{.name = "aux_loss", .help = "coefficient of the balance loss", .min = 0}, aux_loss);
    v(Field{.name = "z_loss", .help = "coefficient of the z-loss", .min = 0}, z_loss);
    v(Field{.name = "bias_rate", .help = "step of the choice bias; 0: no bias", .min = 0},
      bias_rate);
    v(Field{.name = "receive_factor",
            .help = "receive buffers of the exchange, over the mean load",
            .min = 1},
      receive_factor);
  }
  void validate(const std::string& where, int64_t d_model) const;
  bool dropless() const { return capacity_factor == 0; }
};

class Moe final : public Layer {
 public:
  using Config = MoeConfig;
  static constexpr const char* kName = "moe";
  static constexpr char kLetter = 'E';
  static constexpr bool kIsMixer = false;

  Moe(const LayerBuild& build, const Config& config);

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                 const LayerForward& io) const override;
  void backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                const Saved& saved) const override;
  std::vector<StateTensor> received_spec(const Rows& rows) const override;
  std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const override;
  void step(const Context& ctx, const LayerStep& io) const override;
  void end_step(const Context& ctx, const StepStatistics& statistics) const override;
  int64_t num_experts() const override { return X_; }
  double flops_per_token(int64_t row_tokens) const override;
  std::string describe_kernels(int64_t rows, int64_t row_tokens) const override;

 private:
  static constexpr int64_t kDropless = 0;  // a capacity

  struct SavedTensors;
  struct FromRanks;
  struct Counting;
  using Action = std::function<void()>;

  std::unique_ptr<SavedTensors> route(const Context& ctx, const ConstTensorView& x,
                                      const Rows& rows, RoutingTape* tape) const;
  Counting begin_counting(const Context& ctx, const FromRanks& from_ranks,
                          SavedTensors& saved) const;
  void finish_counting(const Context& ctx, const Rows& rows, const FromRanks& from_ranks,
                       const StatisticsSink* statistics, const Counting& counting,
                       const SavedTensors& saved) const;
  void index(const Context& ctx, int64_t capacity, SavedTensors& saved) const;
  void experts_forward(const Context& ctx, const FromRanks& from_ranks, int64_t capacity,
                       SavedTensors& saved, const Action& meanwhile) const;
  void combine(const Context& ctx, const SavedTensors& saved, const TensorView& y) const;
  void choices_backward(const Context& ctx, const SavedTensors& saved, const ConstTensorView& dy,
                        const TensorView& drows, const TensorView& dlogits) const;
  void experts_backward(const Context& ctx, const SavedTensors& saved, const TensorView& drows,
                        const Action& meanwhile) const;
  FromRanks from_ranks(const Context& ctx, const Rows& rows, const Received* given) const;
  int64_t capacity(const Rows& rows) const;
  RouterOptions router_options() const;

  ParameterStore& store_;
  Config config_;
  int64_t branch_index_, D_, X_;
  Communicator* sequence_ = nullptr;  // null: rows are whole here
  bool row_counts_travel_ = false;
  ParameterId router_, router_bias_;
  std::optional<Experts> experts_;
  std::optional<DistributedExperts> distributed_;  // absent: all experts are here
  std::unique_ptr<Mlp> shared_;
};

}  // namespace sluice
