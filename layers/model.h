// A model: embedding, a stack of residual branches, final norm, head with cross-entropy.
//
//   res_0 = embedding(tokens);   res_{i+1} = res_i + branch_i(rms_norm_i(res_i));
//   loss  = cross_entropy(rms_norm(res_n) head^T, targets)
// The model owns the residual stream and its gradient, which are of another dtype than the branches
// where ModelConfig::residual asks for it. B rows, T tokens, D width, V vocabulary.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "layers/layer.h"
#include "layers/layer_build.h"
#include "layers/model_config.h"
#include "layers/parameter_store.h"

namespace sluice {

enum class Recompute : uint8_t {
  none,
  selective,  // feed-forward branches keep only their input and are replayed in the backward
  full,       // every branch
};
std::span<const char* const> enum_names(Recompute);

// How a model is built, beside what it computes.
struct ModelBuild {
  Recompute recompute = Recompute::none;
  LayerGroups groups = {};
  bool carry_state = false;
};

// One micro-batch, on this rank.
struct ModelInput {
  ConstTensorView tokens;   // (B, T) i32
  ConstTensorView targets;  // (B, T) i32, -1 = none; not needed for logits
  const Rows& rows;
  std::span<const Carried> carried = {};  // one a branch, or none
};

struct TrainingPass {
  ConstTensorView loss_scale = {};  // (1) f64: 1 / target tokens of the step, world-wide; or 1
  TensorView loss = {};             // (1) f64: the sum of token losses, overwritten
  const StatisticsSink* statistics = nullptr;  // optional
  RoutingTape* routing = nullptr;              // optional
  // Called when a parameter's gradient is complete for this micro-batch; optional.
  std::function<void(ParameterId)> gradient_ready = {};
};

class Model {
 public:
  // Adds its parameters to the store; the caller freezes it. Throws UsageError on a bad
  // configuration.
  Model(const ModelConfig& config, ParameterStore& store, const ModelBuild& build = {});

  // Forward and backward: adds the gradient of loss_scale * (sum of token losses) + auxiliary
  // losses to the store's bound gradients. Does not wait for a GPU.
  void train(const Context& ctx, const ModelInput& input, const TrainingPass& pass) const;
  // Forward only; loss (1) f64: the sum of token losses, overwritten.
  void evaluate(const Context& ctx, const ModelInput& input, const TensorView& loss) const;
  // Forward only; logits (B, T, V).
  void logits(const Context& ctx, const ModelInput& input, TensorView logits) const;

  // Generation, one token per row from a recurrent state of constant size (attention: a cache of
  // max_tokens). `tokens` (B) i32, logits (B, V).
  std::vector<StateTensor> state_spec(int64_t rows, int64_t max_tokens) const;
  // The same of one branch, for states that are carried from step to step.
  std::vector<StateTensor> branch_state_spec(size_t branch, int64_t rows,
                                             int64_t max_tokens = 1) const;
  void step(const Context& ctx, ConstTensorView tokens, int64_t position,
            const std::vector<TensorView>& states, TensorView logits) const;

  // After the optimizer's update, with the step's world-wide statistics.
  void end_step(const Context& ctx, const StepStatistics& statistics) const;
  // The branches that report expert loads to a StatisticsSink.
  std::vector<ExpertBranch> expert_branches() const;

  // Model FLOPs per token, forward plus backward (3 times the forward; recomputation not counted).
  double flops_per_token(int64_t row_tokens) const;
  // "branches.3.attention: all-to-all over ...": what branches chose, where there is a choice.
  std::vector<std::string> exchanges() const;
  // "branches 3, 11 (attention): cuDNN 9.19.0": what kernels run over such rows where that is worth
  // saying, by a library or slowly, once for all branches of which it is true.
  std::vector<std::string> kernels(int64_t rows, int64_t row_tokens) const;
  const std::vector<BranchConfig>& branches() const { return branch_configs_; }
  const ModelConfig& config() const { return config_; }
  DType dtype() const { return store_.dtype(); }
  DType residual_dtype() const;  // f32 in a bf16 model, unless the configuration wants bf16
  Device device() const { return store_.device(); }

 private:
  struct Branch {
    std::string name;  // "branches.3.mamba2"
    ParameterId norm;
    std::unique_ptr<Layer> layer;
    std::vector<ParameterId> parameters;  // norm included
  };
  // What the backward needs of one branch, and where the saved arena stood before it.
  struct Frame {
    Arena::Mark mark = 0;
    TensorView residual;  // (B, T, D) of residual_dtype(), the norm's input
    TensorView rstd;      // (B * T)
    std::unique_ptr<Saved> saved;
  };
  struct Tape {
    std::vector<Frame> frames;  // of the branches
    // (B, T, D): the input of whichever branch runs. The backward computes it again, so that it is
    // not kept for every branch.
    TensorView normed;
    TensorView residual;  // (B, T, D) of residual_dtype(), the final norm's input
    TensorView hidden;    // (B, T, D), the head's input
    TensorView rstd;
  };
  // Of the residual stream, (B, T, D). Branches take it rounded to their dtype; without a
  // difference the two are one tensor.
  struct ResidualGradient {
    TensorView sum;
    TensorView rounded;

    bool mixed() const { return sum.dtype != rounded.dtype; }
  };

  Tape forward(const Context& ctx, const ModelInput& input, const TrainingPass& pass) const;
  void backward(const Context& ctx, const ModelInput& input, const TrainingPass& pass, Tape& tape,
                const ResidualGradient& dresidual) const;

  ModelConfig config_;
  std::vector<BranchConfig> branch_configs_;
  ParameterStore& store_;
  ParameterId embedding_, final_norm_, head_;  // head_ is embedding_ when tied
  std::vector<Branch> branches_;
};

}  // namespace sluice
