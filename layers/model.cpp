// B batch, T tokens on this rank, D model, V vocabulary
#include "layers/model.h"

#include <fmt/format.h>

#include <algorithm>

#include <array>

#include "kernels/core/plain_path.h"
#include "kernels/core/profile_range.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_xent/linear_xent.h"
#include "kernels/rms_norm/rms_norm.h"
#include "layers/initializers.h"
#include "layers/recompute.h"

namespace sluice {

std::span<const char* const> enum_names(Recompute) {
  static constexpr std::array<const char*, 3> kNames = {"none", "selective", "full"};
  return kNames;
}

namespace {

bool is_mixer(const BranchConfig& branch) {
  bool mixer = false;
  BranchKinds::for_each([&]<class Kind>() {
    mixer |= Kind::kIsMixer && std::holds_alternative<typename Kind::Config>(branch.config);
  });
  return mixer;
}

// "branch 3", "branches 0-2, 5": of an ascending list.
std::string name_of_branches(const std::vector<int64_t>& indices) {
  std::string text;
  for (size_t first = 0, next = 0; first < indices.size(); first = next) {
    for (next = first + 1; next < indices.size() && indices[next] == indices[next - 1] + 1;) ++next;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", indices[first]);
    if (next > first + 1) text += fmt::format("-{}", indices[next - 1]);
  }
  return (indices.size() == 1 ? "branch " : "branches ") + text;
}

// An error of an operator names it; where it ran and on what is said here. `x`: the shape of a
// branch's input.
template <class Body>
void run_branch(const std::string& name, const char* pass, const TensorView& x, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() != ExitCode::bug) throw;
    throw Error(error.code(), concat(error.what(), "; in the ", pass, " of ", name, ", x ",
                                     to_string(x.dims), " ", name_of(x.dtype)));
  }
}

}  // namespace

Model::Model(const ModelConfig& config, ParameterStore& store, const ModelBuild& build)
    : config_(config), branch_configs_(resolve_stack(config)), store_(store) {
  config.validate();
  const int64_t D = config.d_model;
  const Dims table{config.vocab_size, D};
  embedding_ = store.add("embedding.weight", table, normal(config.init_std));
  for (size_t i = 0; i < branch_configs_.size(); ++i) {
    const BranchConfig& branch_config = branch_configs_[i];
    const std::string prefix = fmt::format("branches.{}.", i);
    Branch branch;
    branch.name = prefix + branch_config.kind();
    const int64_t first = int64_t(store.parameters().size());
    branch.norm = store.add(prefix + "norm.weight", {D}, constant(1), kNoDecay);
    branch.layer = make_layer({.store = store,
                               .prefix = branch.name + ".",
                               .branch_index = int64_t(i),
                               .d_model = D,
                               .num_residuals = int64_t(branch_configs_.size()),
                               .norm_eps = config.norm_eps,
                               .groups = build.groups,
                               .carry_state = build.carry_state},
                              branch_config);
    for (int64_t p = first; p < int64_t(store.parameters().size()); ++p) {
      branch.parameters.push_back({int32_t(p)});
    }
    if (build.recompute == Recompute::full ||
        (build.recompute == Recompute::selective && !is_mixer(branch_config))) {
      branch.layer = std::make_unique<RecomputeLayer>(std::move(branch.layer));
    }
    branches_.push_back(std::move(branch));
  }
  final_norm_ = store.add("final_norm.weight", {D}, constant(1), kNoDecay);
  head_ =
      config.tie_embeddings ? embedding_ : store.add("head.weight", table, normal(config.init_std));
}

DType Model::residual_dtype() const {
  return config_.residual == ResidualDType::f32 ? stat_dtype(store_.dtype()) : store_.dtype();
}

Model::Tape Model::forward(const Context& ctx, const ModelInput& input,
                           const TrainingPass& pass) const {
  const ProfileRange range("forward");
  const auto [B, T] = input.tokens.shape<2>("tokens: (B, T)");
  const DType dtype = store_.dtype();
  const Dims dims{B, T, config_.d_model};
  Tape tape;
  const ArenaScope scope(*ctx.scratch);
  const TensorView y = ctx.scratch->alloc(dims, dtype);  // of the branch before
  tape.normed = ctx.saved->alloc(dims, dtype);
  const auto norm = [&](ParameterId weight, bool first, const TensorView& sum,
                        const TensorView& normed, TensorView& rstd) {
    rstd = ctx.saved->alloc({B * T}, stat_dtype(dtype));
    rms_norm_forward(ctx, {.x = first ? sum : tape.residual,
                           .delta = first ? TensorView{} : y,
                           .weight = store_.value(weight),
                           .sum = first ? TensorView{} : sum,
                           .y = normed,
                           .rstd = rstd,
                           .eps = config_.norm_eps});
    tape.residual = sum;
  };
  for (size_t i = 0; i < branches_.size(); ++i) {
    const ProfileRange branch_range(branches_[i].name);
    Frame frame{.mark = ctx.saved->mark(), .residual = {}, .rstd = {}, .saved = nullptr};
    frame.residual = ctx.saved->alloc(dims, residual_dtype());
    if (i == 0) {
      embedding_forward(
          ctx, {.tokens = input.tokens, .weight = store_.value(embedding_), .y = frame.residual});
    }
    norm(branches_[i].norm, i == 0, frame.residual, tape.normed, frame.rstd);
    run_branch(branches_[i].name, "forward", y, [&] {
      frame.saved = branches_[i].layer->forward(
          ctx, input.rows,
          {.x = tape.normed,
           .y = y,
           .statistics = pass.statistics,
           .carried = input.carried.empty() ? nullptr : &input.carried[i],
           .routing = pass.routing});
    });
    tape.frames.push_back(std::move(frame));
  }
  tape.hidden = ctx.saved->alloc(dims, dtype);
  norm(final_norm_, false, ctx.saved->alloc(dims, residual_dtype()), tape.hidden, tape.rstd);
  return tape;
}

void Model::train(const Context& ctx, const ModelInput& input, const TrainingPass& pass) const {
  const ArenaScope saved_scope(*ctx.saved);
  Tape tape = forward(ctx, input, pass);
  const ArenaScope scope(*ctx.scratch);
  const auto [B, T] = input.tokens.shape<2>("tokens: (B, T)");
  const TensorView dhidden = ctx.scratch->alloc(tape.hidden.dims, tape.hidden.dtype);
  ResidualGradient dresidual{.sum = dhidden, .rounded = dhidden};
  if (tape.residual.dtype != dhidden.dtype)
    dresidual.sum = ctx.scratch->alloc(tape.residual.dims, tape.residual.dtype);
  {
    const ProfileRange range("head and loss");
    const ArenaScope head_scope(*ctx.scratch);
    const TensorView losses = ctx.scratch->alloc({B, T}, stat_dtype(store_.dtype()));
    linear_xent_forward_backward(ctx, {.hidden = tape.hidden,
                                       .weight = store_.value(head_),
                                       .targets = input.targets,
                                       .losses = losses,
                                       .loss_sum = pass.loss,
                                       .dhidden = dhidden,
                                       .dweight = store_.grad(head_),
                                       .step_scale = pass.loss_scale});
  }
  rms_norm_backward(ctx, {.dy = dhidden,
                          .sum = tape.residual,
                          .weight = store_.value(final_norm_),
                          .rstd = tape.rstd,
                          .dx = dresidual.sum,
                          .dx_rounded = dresidual.mixed() ? dresidual.rounded : TensorView{},
                          .dweight = store_.grad(final_norm_)});
  backward(ctx, input, pass, tape, dresidual);
}

// The forward read bottom-up; dresidual is the gradient of the residual stream below the final
// norm.
void Model::backward(const Context& ctx, const ModelInput& input, const TrainingPass& pass,
                     Tape& tape, const ResidualGradient& dresidual) const {
  const ProfileRange range("backward");
  const auto ready = [&](ParameterId id) {
    if (pass.gradient_ready) pass.gradient_ready(id);
  };
  if (head_.index != embedding_.index) ready(head_);
  ready(final_norm_);
  for (size_t i = branches_.size(); i-- > 0;) {
    const Branch& branch = branches_[i];
    const ProfileRange branch_range(branch.name);
    Frame& frame = tape.frames[i];
    {
      const ArenaScope scope(*ctx.scratch);
      const TensorView dx = ctx.scratch->alloc(dresidual.rounded.dims, dresidual.rounded.dtype);
      // The last branch's input is there still.
      if (i + 1 < branches_.size()) {
        rms_norm_forward(ctx, {.x = frame.residual,
                               .weight = store_.value(branch.norm),
                               .y = tape.normed,
                               .eps = config_.norm_eps});
      }
      run_branch(branch.name, "backward", dx, [&] {
        branch.layer->backward(ctx, input.rows, {.dy = dresidual.rounded, .dx = dx}, *frame.saved);
      });
      rms_norm_backward(ctx, {.dy = dx,
                              .sum = frame.residual,
                              .weight = store_.value(branch.norm),
                              .rstd = frame.rstd,
                              .dsum = dresidual.sum,
                              .dx = dresidual.sum,
                              .dx_rounded = dresidual.mixed() ? dresidual.rounded : TensorView{},
                              .dweight = store_.grad(branch.norm)});
    }
    frame.saved.reset();
    ctx.saved->release(frame.mark);
    for (const ParameterId id : branch.parameters) ready(id);
  }
  embedding_backward(
      ctx, {.tokens = input.tokens, .dy = dresidual.sum, .dweight = store_.grad(embedding_)});
  ready(embedding_);
}

void Model::evaluate(const Context& ctx, const ModelInput& input, const TensorView& loss) const {
  const ArenaScope saved_scope(*ctx.saved);
  const Tape tape = forward(ctx, input, {});
  const ArenaScope scope(*ctx.scratch);
  const TensorView losses = ctx.scratch->alloc(input.tokens.dims, stat_dtype(store_.dtype()));
  linear_xent_forward(ctx, {.hidden = tape.hidden,
                            .weight = store_.value(head_),
                            .targets = input.targets,
                            .losses = losses,
                            .loss_sum = loss});
}

void Model::logits(const Context& ctx, const ModelInput& input, TensorView logits) const {
  const ArenaScope saved_scope(*ctx.saved);
  const Tape tape = forward(ctx, input, {});
  gemm(ctx, {.a = tape.hidden.matrix(),
             .b = store_.value(head_),
             .c = logits.matrix(),
             .transpose_b = true});
}

std::vector<StateTensor> Model::branch_state_spec(size_t branch, int64_t rows,
                                                  int64_t max_tokens) const {
  std::vector<StateTensor> specs = branches_[branch].layer->state_spec(rows, max_tokens);
  for (StateTensor& spec : specs) {
    spec.name = fmt::format("{}.{}", branches_[branch].name, spec.name);
  }
  return specs;
}

std::vector<StateTensor> Model::state_spec(int64_t rows, int64_t max_tokens) const {
  std::vector<StateTensor> specs;
  for (size_t branch = 0; branch < branches_.size(); ++branch) {
    for (StateTensor& spec : branch_state_spec(branch, rows, max_tokens))
      specs.push_back(std::move(spec));
  }
  return specs;
}

void Model::step(const Context& ctx, ConstTensorView tokens, int64_t position,
                 const std::vector<TensorView>& states, TensorView logits) const {
  const int64_t B = tokens.dim(0);
  const DType dtype = store_.dtype();
  const ArenaScope scope(*ctx.scratch);
  const TensorView residual = ctx.scratch->alloc({B, config_.d_model}, residual_dtype());
  const TensorView normed = ctx.scratch->alloc(residual.dims, dtype);
  const TensorView y = ctx.scratch->alloc(residual.dims, dtype);
  embedding_forward(ctx, {.tokens = tokens.reshape({B, 1}),
                          .weight = store_.value(embedding_),
                          .y = residual.reshape({B, 1, config_.d_model})});
  const auto add_and_norm = [&](ParameterId weight, bool first) {
    rms_norm_forward(ctx, {.x = residual,
                           .delta = first ? TensorView{} : y,
                           .weight = store_.value(weight),
                           .sum = first ? TensorView{} : residual,
                           .y = normed,
                           .eps = config_.norm_eps});
  };
  size_t next_state = 0;
  for (const Branch& branch : branches_) {
    add_and_norm(branch.norm, &branch == &branches_.front());
    const size_t count = branch.layer->state_spec(B, 1).size();
    const auto first = states.begin() + int64_t(next_state);
    branch.layer->step(
        ctx,
        {.x = normed, .y = y, .position = position, .states = {first, first + int64_t(count)}});
    next_state += count;
  }
  add_and_norm(final_norm_, branches_.empty());
  gemm(ctx, {.a = normed, .b = store_.value(head_), .c = logits, .transpose_b = true});
}

void Model::end_step(const Context& ctx, const StepStatistics& statistics) const {
  for (const Branch& branch : branches_) branch.layer->end_step(ctx, statistics);
}

std::vector<ExpertBranch> Model::expert_branches() const {
  std::vector<ExpertBranch> found;
  for (size_t i = 0; i < branches_.size(); ++i) {
    const int64_t experts = branches_[i].layer->num_experts();
    if (experts > 0) found.push_back({int64_t(i), experts});
  }
  return found;
}

std::vector<std::string> Model::exchanges() const {
  std::vector<std::string> lines;
  for (size_t i = 0; i < branches_.size(); ++i) {
    const std::string text = branches_[i].layer->describe_exchange();
    if (text.empty()) continue;
    lines.push_back(fmt::format("{}: {}", branches_[i].name, text));
  }
  return lines;
}

std::vector<std::string> Model::kernels(int64_t rows, int64_t row_tokens) const {
  const Device device = store_.device();
  const DType dtype = store_.dtype();
  const int64_t D = config_.d_model;
  std::vector<std::string> lines;
  const std::string own = joined(describe_embedding(device, dtype, D),
                                 describe_norm(device, residual_dtype(), dtype, D),
                                 describe_products(device, dtype, {D}));
  if (!own.empty()) lines.push_back("embedding, norms and head: " + own);
  std::vector<std::pair<std::string, std::vector<int64_t>>> told;  // by the branches
  for (size_t i = 0; i < branches_.size(); ++i) {
    const std::string text = branches_[i].layer->describe_kernels(rows, row_tokens);
    if (text.empty()) continue;
    const std::string line = concat("(", branch_configs_[i].kind(), "): ", text);
    auto same = std::find_if(told.begin(), told.end(),
                             [&](const auto& other) { return other.first == line; });
    if (same == told.end()) same = told.insert(told.end(), {line, {}});
    same->second.push_back(int64_t(i));
  }
  for (const auto& [line, branches] : told)
    lines.push_back(fmt::format("{} {}", name_of_branches(branches), line));
  return lines;
}

double Model::flops_per_token(int64_t row_tokens) const {
  double forward = 2.0 * double(config_.d_model) * double(config_.vocab_size);
  for (const Branch& branch : branches_) forward += branch.layer->flops_per_token(row_tokens);
  return 3 * forward;
}

}  // namespace sluice
