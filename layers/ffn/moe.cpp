// B batch, T tokens on this rank, D model, F hidden width of an expert, X experts, k choices
#include "layers/ffn/moe.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/core/device_memory.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/host_copy.h"
#include "kernels/core/plain_path.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"
#include "kernels/token_permute/token_permute.h"
#include "layers/initializers.h"
#include "layers/received.h"
#include "layers/routing_tape.h"

namespace sluice {

// The permuted tokens and the activation are computed again in the backward.
struct Moe::SavedTensors : Saved {
  ConstTensorView x;       // (B, T, D)
  TensorView logits;       // (B, T, X)
  TensorView experts;      // (B, T, k) i32
  TensorView weights;      // (B, T, k)
  ConstTensorView counts;  // (B, X): choices of whole rows, or of what is here (see from_ranks)
  ConstTensorView before;  // (B, X): choices of earlier sequence ranks; with a capacity
  TensorView slot;         // (B, T, k) i32
  TensorView offsets;      // (X + 1) i64
  TensorView kept;         // (X) i32: entries of this rank for every expert
  TensorView out;          // (B*T*k, D)
  TensorView up;           // (B*T*k, U), if all experts are here
  DistributedExperts::Tape tape;  // if not
  std::unique_ptr<Saved> shared;  // of the shared expert
};

// What comes from other ranks, in the order of received_spec.
struct Moe::FromRanks {
  TensorView row_counts;     // (B, X): choices of whole rows; if they travel
  TensorView before;         // (B, X): choices of earlier sequence ranks; with a capacity
  TensorView expert_counts;  // (ep, X) i32; if experts are distributed
  bool filled = false;
};

// Choices of the tokens here, while those of the row's other tokens are on their way.
struct Moe::Counting {
  TensorView gathered;  // (ranks, B, X), if they travel
  TensorView here;      // (B, X); absent in a replay that has received the counts
  TensorView mass;      // (B, X): sums of the scores
  TensorView z;         // (B)
  Event event;
};

void MoeConfig::validate(const std::string& where, int64_t) const {
  if (top_k > experts) {
    throw UsageError(fmt::format("{}: top_k {} is above experts {}", where, top_k, experts));
  }
  if (experts % groups != 0) {
    throw UsageError(
        fmt::format("{}: groups {} does not divide experts {}", where, groups, experts));
  }
  if (topk_group > groups || topk_group * (experts / groups) < top_k) {
    throw UsageError(
        fmt::format("{}: topk_group {} of {} groups leaves fewer than top_k {} experts", where,
                    topk_group, groups, top_k));
  }
  if (groups > 1 && score != RouterScore::sigmoid) {
    throw UsageError(fmt::format("{}: groups {} needs score: sigmoid", where, groups));
  }
}

Moe::Moe(const LayerBuild& build, const Config& config)
    : store_(build.store),
      config_(config),
      branch_index_(build.branch_index),
      D_(build.d_model),
      X_(config.experts) {
  router_ = store_.add(build.prefix + "router.weight", {X_, D_}, uniform(1 / std::sqrt(double(D_))),
                       {.precise = true});
  if (config.score == RouterScore::sigmoid || config.bias_rate > 0) {
    router_bias_ = store_.add(build.prefix + "router.bias", {X_}, constant(0),
                              {.decay = false, .precise = true, .frozen = true});
  }
  experts_.emplace(
      build, ExpertsSpec{.experts = X_, .hidden = config.hidden, .activation = config.activation});
  const auto ranks = [](const Communicator* group) { return group == nullptr ? 1 : group->size(); };
  if (ranks(build.groups.experts) > 1) {
    distributed_.emplace(*experts_, *build.groups.experts, X_, config.receive_factor);
  }
  if (ranks(build.groups.sequence) > 1) sequence_ = build.groups.sequence;
  row_counts_travel_ = sequence_ != nullptr && (config.aux_loss > 0 || config.capacity_factor > 0);
  if (config.shared_hidden > 0) {
    LayerBuild shared = build;
    shared.prefix += "shared.";
    shared_ = std::make_unique<Mlp>(
        shared, MlpConfig{.hidden = config.shared_hidden, .activation = config.activation});
  }
}

RouterOptions Moe::router_options() const {
  return {.score = config_.score,
          .top_k = config_.top_k,
          .renormalise = config_.renormalise,
          .scale = config_.scale,
          .num_groups = config_.groups,
          .topk_group = config_.topk_group};
}

// Entries that an expert takes from a row; kDropless: all.
int64_t Moe::capacity(const Rows& rows) const {
  const double mean = double(rows.row_tokens * config_.top_k) / double(X_);
  return int64_t(std::ceil(config_.capacity_factor * mean));
}

std::vector<StateTensor> Moe::received_spec(const Rows& rows) const {
  const DType stat = stat_dtype(store_.dtype());
  std::vector<StateTensor> spec;
  if (row_counts_travel_) spec.push_back({"row_counts", {rows.rows, X_}, stat});
  if (row_counts_travel_ && config_.capacity_factor > 0) {
    spec.push_back({"choices_before", {rows.rows, X_}, stat});
  }
  if (distributed_) {
    const int64_t ranks = X_ / experts_->count();
    spec.push_back({"expert_counts", {ranks, X_}, DType::i32});
  }
  return spec;
}

Moe::FromRanks Moe::from_ranks(const Context& ctx, const Rows& rows, const Received* given) const {
  const Received received = given_or_new(ctx, given, received_spec(rows));
  FromRanks result{.row_counts = {}, .before = {}, .expert_counts = {}, .filled = received.filled};
  size_t next = 0;
  if (row_counts_travel_) result.row_counts = received.tensors[next++];
  if (row_counts_travel_ && config_.capacity_factor > 0) result.before = received.tensors[next++];
  if (distributed_) result.expert_counts = received.tensors[next++];
  return result;
}

std::unique_ptr<Moe::SavedTensors> Moe::route(const Context& ctx, const ConstTensorView& x,
                                              const Rows& rows, RoutingTape* tape) const {
  const auto [B, T, D] = x.shape<3>("x: (B, T, D)");
  const int64_t k = config_.top_k;
  const DType stat = stat_dtype(x.dtype);
  auto saved = std::make_unique<SavedTensors>();
  saved->x = x;
  saved->logits = ctx.saved->alloc({B, T, X_}, stat);
  saved->experts = ctx.saved->alloc({B, T, k}, DType::i32);
  saved->weights = ctx.saved->alloc({B, T, k}, stat);
  gemm(ctx, {.a = x.matrix(),
             .b = store_.value(router_),
             .c = saved->logits.matrix(),
             .transpose_b = true});
  if (ctx.counting()) tape = nullptr;
  const bool dictated = tape != nullptr && tape->dictating();
  if (dictated) {
    const HostCopy choices(saved->experts, ctx.stream, HostCopy::Content::unread);
    tape->read(branch_index_, rows, choices.view());
    choices.write_back();
  }
  topk_router_forward(ctx, {.logits = saved->logits,
                            .bias = store_.optional_value(router_bias_),
                            .experts = saved->experts,
                            .weights = saved->weights,
                            .options = router_options(),
                            .chosen = dictated});
  if (tape != nullptr && !dictated)
    tape->write(branch_index_, rows, HostCopy(saved->experts, ctx.stream).view());
  return saved;
}

// Counts the choices here, and asks for those of whole rows, which the balance loss and the
// capacity go by.
Moe::Counting Moe::begin_counting(const Context& ctx, const FromRanks& from_ranks,
                                  SavedTensors& saved) const {
  const int64_t B = saved.logits.dim(0);
  const DType stat = saved.logits.dtype;
  Counting counting;
  const TensorView own_counts = row_counts_travel_ ? TensorView{} : ctx.saved->alloc({B, X_}, stat);
  saved.counts = row_counts_travel_ ? from_ranks.row_counts : own_counts;
  saved.before = from_ranks.before;
  if (row_counts_travel_ && from_ranks.filled) return counting;
  if (row_counts_travel_) counting.gathered = ctx.scratch->alloc({sequence_->size(), B, X_}, stat);
  counting.here = row_counts_travel_ ? counting.gathered.slice(sequence_->rank()) : own_counts;
  counting.mass = ctx.scratch->alloc({B, X_}, stat);
  counting.z = ctx.scratch->alloc({B}, stat);
  router_statistics(ctx, {.logits = saved.logits,
                          .experts = saved.experts,
                          .counts = counting.here,
                          .mass = counting.mass,
                          .z = counting.z,
                          .options = router_options()});
  if (row_counts_travel_) counting.event = sequence_->all_gather(counting.here, counting.gathered);
  return counting;
}

// Sums what has come, and adds to the step's statistics.
void Moe::finish_counting(const Context& ctx, const Rows& rows, const FromRanks& from_ranks,
                          const StatisticsSink* statistics, const Counting& counting,
                          const SavedTensors& saved) const {
  if (!counting.here) return;
  const int64_t B = saved.logits.dim(0);
  if (row_counts_travel_) {
    counting.event.order(ctx.stream);
    const auto sum_of_first = [&](int64_t ranks, const TensorView& sum) {
      const TensorView flat = sum.reshape({B * X_});
      zero(ctx, flat);
      sum_rows(ctx, counting.gathered.reshape({sequence_->size(), B * X_}).row_range(0, ranks),
               flat);
    };
    sum_of_first(sequence_->size(), from_ranks.row_counts);
    if (from_ranks.before) sum_of_first(sequence_->rank(), from_ranks.before);
  }
  if (statistics == nullptr) return;
  const auto loads = statistics->expert_counts.find(branch_index_);
  router_report(ctx,
                {.counts_here = counting.here,
                 .counts = saved.counts,
                 .mass = counting.mass,
                 .z = counting.z,
                 .losses = statistics->losses,
                 .loads = loads == statistics->expert_counts.end() ? TensorView{} : loads->second,
                 .row_tokens = rows.row_tokens,
                 .top_k = config_.top_k,
                 .balance_scale = config_.aux_loss / double(rows.step_rows),
                 .z_scale = config_.z_loss / double(rows.step_rows)});
}

// The order of the entries by expert.
void Moe::index(const Context& ctx, int64_t capacity, SavedTensors& saved) const {
  saved.slot = ctx.saved->alloc(saved.experts.dims, DType::i32);
  saved.offsets = ctx.saved->alloc({X_ + 1}, DType::i64);
  saved.kept = ctx.saved->alloc({X_}, DType::i32);
  token_index(ctx, {.experts = saved.experts,
                    .before = saved.before,
                    .slot = saved.slot,
                    .offsets = saved.offsets,
                    .kept = saved.kept,
                    .capacity = capacity});
}

// saved.out, and `meanwhile`: while tokens travel, if they do.
void Moe::experts_forward(const Context& ctx, const FromRanks& from_ranks, int64_t capacity,
                          SavedTensors& saved, const Action& meanwhile) const {
  const int64_t entries = saved.experts.numel();
  const DType dtype = saved.x.dtype;
  saved.out = ctx.saved->alloc({entries, D_}, dtype);
  if (!distributed_) meanwhile();
  const ArenaScope scope(*ctx.scratch);
  const TensorView rows = ctx.scratch->alloc({entries, D_}, dtype);
  Event counted;
  if (distributed_ && !from_ranks.filled) {
    counted = distributed_->begin_counts(saved.kept, from_ranks.expert_counts);
  }
  token_permute_forward(ctx, {.x = saved.x, .slot = saved.slot, .rows = rows});
  if (distributed_) {
    counted.order(ctx.stream);
    if (capacity > 0) {
      const int64_t slots = saved.x.dim(0) * std::min(capacity, saved.x.dim(1));
      distributed_->route_slots(ctx, slots, saved.offsets, saved.kept, from_ranks.expert_counts,
                                saved.tape);
    } else {
      distributed_->route(ctx, from_ranks.expert_counts, entries, saved.tape);
    }
    distributed_->forward(ctx, rows, saved.out, saved.tape, meanwhile);
    return;
  }
  saved.up = ctx.saved->alloc({entries, experts_->up_width()}, dtype);
  experts_->forward(ctx, {.rows = rows,
                          .offsets = saved.offsets,
                          .up = saved.up,
                          .hidden = ctx.scratch->alloc({entries, experts_->hidden()}, dtype),
                          .out = saved.out});
}

// y = the weighted sum over choices, beside the shared expert's result, which y holds.
void Moe::combine(const Context& ctx, const SavedTensors& saved, const TensorView& y) const {
  const ArenaScope scope(*ctx.scratch);
  const TensorView routed = shared_ ? ctx.scratch->alloc(y.dims, y.dtype) : y;
  token_unpermute_forward(
      ctx, {.rows = saved.out, .slot = saved.slot, .weights = saved.weights, .y = routed});
  if (shared_) add(ctx, routed, y);
}

std::unique_ptr<Saved> Moe::forward(const Context& ctx, const Rows& rows,
                                    const LayerForward& io) const {
  const FromRanks from_others = from_ranks(ctx, rows, io.received);
  std::unique_ptr<SavedTensors> saved = route(ctx, io.x, rows, io.routing);
  const ArenaScope scope(*ctx.scratch);
  const Counting counting = begin_counting(ctx, from_others, *saved);
  const auto finish = [&] {
    finish_counting(ctx, rows, from_others, io.statistics, counting, *saved);
  };
  // A capacity is dealt out by the choices of earlier ranks. Else nothing waits for them but the
  // losses, so that they travel while the experts work.
  if (!config_.dropless()) finish();
  index(ctx, capacity(rows), *saved);
  experts_forward(ctx, from_others, capacity(rows), *saved, [&] {
    if (shared_) saved->shared = shared_->forward(ctx, rows, {.x = io.x, .y = io.y});
  });
  combine(ctx, *saved, io.y);
  if (config_.dropless()) finish();
  return saved;
}

void Moe::backward(const Context& ctx, const Rows& rows, const LayerBackward& io,
                   const Saved& base) const {
  const auto& saved = static_cast<const SavedTensors&>(base);
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const TensorView dlogits = scratch.alloc(saved.logits.dims, saved.logits.dtype);
  const TensorView drows = scratch.alloc(saved.out.dims, io.dy.dtype);
  const TensorView dx_shared = shared_ ? scratch.alloc(io.dx.dims, io.dx.dtype) : TensorView{};
  choices_backward(ctx, saved, io.dy, drows, dlogits);
  router_loss_backward(ctx, {.logits = saved.logits,
                             .counts = saved.counts,
                             .dlogits = dlogits,
                             .row_tokens = rows.row_tokens,
                             .balance_scale = config_.aux_loss / double(rows.step_rows),
                             .z_scale = config_.z_loss / double(rows.step_rows),
                             .options = router_options()});
  experts_backward(ctx, saved, drows, [&] {
    if (shared_) shared_->backward(ctx, rows, {.dy = io.dy, .dx = dx_shared}, *saved.shared);
  });
  token_permute_backward(ctx, {.drows = drows,
                               .slot = saved.slot,
                               .dlogits = dlogits,
                               .router = store_.value(router_),
                               .dx = io.dx});
  gemm(ctx, {.a = dlogits.matrix(),
             .b = saved.x.matrix(),
             .c = store_.grad(router_),
             .transpose_a = true,
             .beta = 1});
  if (shared_) add(ctx, dx_shared, io.dx);
}

// From dy: drows, of the experts' results, and dlogits as far as it flows through the weights of
// the choices.
void Moe::choices_backward(const Context& ctx, const SavedTensors& saved, const ConstTensorView& dy,
                           const TensorView& drows, const TensorView& dlogits) const {
  const ArenaScope scope(*ctx.scratch);
  const TensorView dweights = ctx.scratch->alloc(saved.weights.dims, saved.weights.dtype);
  token_unpermute_backward(ctx, {.dy = dy,
                                 .rows = saved.out,
                                 .slot = saved.slot,
                                 .weights = saved.weights,
                                 .drows = drows,
                                 .dweights = dweights});
  topk_router_backward(ctx, {.dweights = dweights,
                             .logits = saved.logits,
                             .experts = saved.experts,
                             .dlogits = dlogits,
                             .options = router_options()});
}

// The experts' gradients, and drows from that of their results to that of their rows.
void Moe::experts_backward(const Context& ctx, const SavedTensors& saved, const TensorView& drows,
                           const Action& meanwhile) const {
  const auto sort_rows = [&](const TensorView& rows) {
    token_permute_forward(ctx, {.x = saved.x, .slot = saved.slot, .rows = rows});
  };
  if (distributed_) {
    distributed_->backward(ctx, drows, saved.tape, sort_rows, meanwhile);
    return;
  }
  meanwhile();
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const int64_t entries = saved.out.dim(0);
  const TensorView rows = scratch.alloc(drows.dims, drows.dtype);
  sort_rows(rows);
  experts_->backward(ctx, {.rows = rows,
                           .offsets = saved.offsets,
                           .up = saved.up,
                           .hidden = scratch.alloc({entries, experts_->hidden()}, drows.dtype),
                           .dup = scratch.alloc(saved.up.dims, drows.dtype),
                           .gradient = drows});
}

std::vector<StateTensor> Moe::state_spec(int64_t, int64_t) const { return {}; }

// Dropless, whatever the training capacity: a token alone in its row never competes. Collective
// over groups.experts.
void Moe::step(const Context& ctx, const LayerStep& io) const {
  const ArenaScope saved_scope(*ctx.saved);
  const Dims as_row{io.x.dim(0), 1, D_};
  Rows rows;
  rows.rows = io.x.dim(0);
  const FromRanks from_others = from_ranks(ctx, rows, nullptr);
  const std::unique_ptr<SavedTensors> saved = route(ctx, io.x.reshape(as_row), rows, nullptr);
  index(ctx, kDropless, *saved);
  experts_forward(ctx, from_others, kDropless, *saved, [&] {
    if (shared_) shared_->step(ctx, {.x = io.x, .y = io.y});
  });
  combine(ctx, *saved, io.y.reshape(as_row));
}

void Moe::end_step(const Context& ctx, const StepStatistics& statistics) const {
  if (config_.bias_rate <= 0) return;
  const auto found = statistics.expert_counts.find(branch_index_);
  if (found == statistics.expert_counts.end()) return;
  double mean = 0;
  for (const double count : found->second) mean += count / double(X_);
  const TensorView bias = store_.value(router_bias_);
  const ArenaScope scope(*ctx.scratch);
  const TensorView moves = ctx.scratch->alloc({X_}, bias.dtype);
  if (ctx.counting()) return;
  dispatch_float(bias.dtype, [&]<class T>() {
    std::vector<T> host(X_);
    for (int64_t e = 0; e < X_; ++e) {
      const double error = mean - found->second[e];
      host[e] = T(config_.bias_rate * double((error > 0) - (error < 0)));
    }
    copy_bytes(moves.data, ctx.device, host.data(), kCpu, X_ * sizeof(T), ctx.stream);
  });
  add(ctx, moves, bias);
}

std::string Moe::describe_kernels(int64_t rows, int64_t row_tokens) const {
  const Device device = store_.device();
  const DType dtype = store_.dtype();
  const int64_t F = experts_->hidden();
  return joined(describe_products(device, dtype, {D_}), describe_permutation(device, dtype, D_),
                describe_experts(device, dtype, D_, F), describe_activation(device, dtype, F),
                shared_ ? shared_->describe_kernels(rows, row_tokens) : "");
}

double Moe::flops_per_token(int64_t row_tokens) const {
  return 2.0 * D_ * X_ +
         2.0 * double(config_.top_k) * D_ * (experts_->up_width() + experts_->hidden()) +
         (shared_ ? shared_->flops_per_token(row_tokens) : 0.0);
}

}  // namespace sluice
