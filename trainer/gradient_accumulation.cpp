#include "trainer/gradient_accumulation.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/halving_tree.h"
#include "kernels/core/host_copy.h"
#include "kernels/core/profile_range.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/grad_norm/grad_norm.h"

namespace sluice {

namespace {

// Of column `column` of a table of `stride` columns, rows [lo, hi).
double halving_sum(const std::vector<double>& values, int64_t stride, int64_t column, int64_t lo,
                   int64_t hi) {
  if (hi - lo == 1) return values[lo * stride + column];
  const int64_t middle = halving_middle(lo, hi);
  return halving_sum(values, stride, column, lo, middle) +
         halving_sum(values, stride, column, middle, hi);
}

}  // namespace

MicroBatches deal_micro_batches(const TrainConfig& train, int64_t zero, int64_t dp) {
  const int64_t micro_batches_of_world = train.global_batch / train.micro_batch;
  if (train.global_batch % train.micro_batch != 0 || micro_batches_of_world % dp != 0) {
    throw UsageError(concat("train.global_batch ", train.global_batch,
                            " must be a multiple of train.micro_batch ", train.micro_batch,
                            " times dp ", dp, " = ", train.micro_batch * dp));
  }
  return {.count = micro_batches_of_world / dp,
          .rows = train.micro_batch,
          .ranks = dp,
          .in_turn = zero == 2};
}

GradientAccumulation::GradientAccumulation(ParameterStore& store, const Model& model,
                                           const ShardedArena& arena, const Mesh& mesh,
                                           const MicroBatches& micro_batches,
                                           Reproducible reproducible, bool allocate)
    : store_(store),
      arena_(arena),
      mesh_(mesh),
      micro_batches_(micro_batches),
      in_tree_(store.device().is_cpu() || reproducible == Reproducible::layout),
      tree_(in_tree_ ? micro_batches.count : 1),
      statistics_(model.expert_branches(), store.device(), allocate),
      batches_(micro_batches.count),
      copies_(allocate ? store.device() : kCpu) {
  allocate_gradients(allocate);
  allocate_scalars(allocate);
}

// The tree's buffers, a whole one where those hold shards, and what reducers need beside.
void GradientAccumulation::allocate_gradients(bool allocate) {
  // One micro-batch needs no sum of shards, nor does one rank have any.
  const bool packs = arena_.shards_gradients() && micro_batches_.count > 1 &&
                     mesh_.shape().world() > 1 && in_tree_;
  const int64_t level = packs ? arena_.owned().elements() : store_.flat_size();
  const int64_t whole = packs ? store_.flat_size() : 0;
  // The CPU's groups sum in the tree's order themselves.
  std::vector<int64_t> staged;
  for (const ShardedArena::Group& group : arena_.groups()) {
    const bool stages = in_tree_ && store_.device().is_cuda();
    staged.push_back(stages ? staged_elements(group.buckets, group.ranks->size()) : 0);
  }
  const DType dtype = store_.master_dtype();
  const int64_t elements =
      tree_.buffers() * level + whole + std::accumulate(staged.begin(), staged.end(), int64_t{0});
  bytes_ = elements * int64_t(size_of(dtype));
  if (allocate) storage_ = Buffer(bytes_, store_.device());
  const TensorView all(storage_.data(), {elements}, dtype, store_.device());
  int64_t taken = 0;
  const auto take = [&](int64_t count) {
    taken += count;
    return count == 0 ? TensorView{} : all.columns(taken - count, {count});
  };
  for (int i = 0; i < tree_.buffers(); ++i) buffers_.push_back(take(level));
  leaf_ = take(whole);
  for (size_t i = 0; i < staged.size(); ++i) {
    const ShardedArena::Group& group = arena_.groups()[i];
    reducers_.emplace_back(
        *group.ranks, group.buckets,
        arena_.shards_state() ? Reduction::reduce_scatter : Reduction::all_reduce, take(staged[i]));
  }
  store_.bind_gradients(packs ? leaf_ : buffers_[0]);
}

void GradientAccumulation::allocate_scalars(bool allocate) {
  const Communicator& ranks = mesh_.joined({Axis::dp, Axis::cp});
  const int64_t rows = micro_batches_.count * ranks.size();
  const Device device = store_.device();
  // The table of all ranks, of which this rank's rows are a part; where its losses are; their sum
  // and scale.
  const int64_t numbers = rows * kScalars + rows + 2;
  if (allocate) scalar_storage_ = Buffer(numbers * sizeof(double), device);
  const TensorView all(scalar_storage_.data(), {numbers}, DType::f64, device);
  gathered_ = all.columns(0, {rows * kScalars}).reshape({rows, kScalars});
  scalars_ = gathered_.row_range(ranks.rank() * micro_batches_.count, micro_batches_.count);
  loss_ = all.columns(rows * kScalars + rows, {1});
  loss_scale_ = all.columns(rows * kScalars + rows + 1, {1});
  loss_places_ = TensorView(all.columns(rows * kScalars, {rows}).data, {rows}, DType::i64, device);
  if (!allocate) return;
  const OwnedStream stream(device);
  const HostCopy places(loss_places_, stream, HostCopy::Content::unread);
  for (int64_t row = 0; row < rows; ++row) places.view().as<int64_t>()[row] = row * kScalars;
  places.write_back();
}

HeldTensor GradientAccumulation::gradients() const {
  return {buffers_[0], reduces_every_leaf() ? &arena_.owned() : nullptr};
}

void GradientAccumulation::begin_reduction(const Context& ctx, const TensorView& flat,
                                           const TensorView& packed) {
  int64_t packed_begin = 0;
  for (size_t i = 0; i < reducers_.size(); ++i) {
    const Slice span = arena_.groups()[i].buckets.span;
    const int64_t own = span.size() / arena_.groups()[i].ranks->size();
    reducers_[i].begin(ctx, flat, packed ? packed.columns(packed_begin, {own}) : TensorView{});
    reducers_[i].ready(arena_.groups()[i].padding, span.end);
    packed_begin += own;
  }
}

void GradientAccumulation::ready(ParameterId id) {
  const int64_t begin = store_.parameter(id).offset;
  for (size_t i = 0; i < reducers_.size(); ++i) {
    if (begin < arena_.groups()[i].buckets.span.end)
      return reducers_[i].ready(begin, store_.padded_end(id));
  }
}

void GradientAccumulation::finish_reduction() {
  const ProfileRange range("reduce");
  for (GradientReducer& reducer : reducers_) reducer.finish();
}

void GradientAccumulation::run_leaf(const Context& ctx, const Model& model, const Step& step,
                                    int64_t index) {
  const ModelInput input = batches_[index].input();
  const MicroBatchTree::Leaf leaf = adds_in_place() ? MicroBatchTree::Leaf{} : tree_.leaf(index);
  const bool last = index + 1 == micro_batches_.count;
  const bool reduces = last || reduces_every_leaf();
  const TensorView& own = buffers_[leaf.buffer];
  const TensorView& flat = reduces_every_leaf() ? leaf_ : own;
  if (!adds_in_place() || index == 0) {
    store_.begin_gradients(ctx, flat);
  } else {
    store_.bind_gradients(flat);
  }
  const TensorView scalars = scalars_.row_range(index, 1).reshape({kScalars});
  StatisticsSink statistics = statistics_.sink();
  statistics.losses = scalars.columns(1, {2});
  zero(ctx, scalars);
  TrainingPass pass{.loss_scale = loss_scale_,
                    .loss = scalars.columns(0, {1}),
                    .statistics = &statistics,
                    .routing = step.routing};
  if (reduces) {
    begin_reduction(ctx, reduces_every_leaf() ? leaf_ : buffers_[0],
                    reduces_every_leaf() ? own : TensorView{});
    pass.gradient_ready = [&](ParameterId id) {
      if (!reduces_every_leaf())
        merge_leaf(ctx, leaf, buffers_, store_.parameter(id).offset, store_.padded_end(id));
      ready(id);
    };
  }
  model.train(ctx,
              {.tokens = input.tokens,
               .targets = input.targets,
               .rows = input.rows,
               .carried = step.carried == nullptr ? std::span<const Carried>{}
                                                  : step.carried->of_batch(index)},
              pass);
  if (reduces_every_leaf()) finish_reduction();
  if (reduces_every_leaf() || !last) merge_leaf(ctx, leaf, buffers_, 0, own.numel());
}

void GradientAccumulation::load(const Context& ctx, const std::function<Batch()>& next_batch,
                                double loss_scale) {
  if (!ctx.counting())
    copy_bytes(loss_scale_.data, ctx.device, &loss_scale, kCpu, sizeof(double), ctx.stream);
  for (DeviceBatch& batch : batches_) {
    if (!batch.staged()) batch.stage(ctx, next_batch(), ctx.stream);
    batch.commit(ctx);
  }
}

void GradientAccumulation::stage(const Context& ctx, const std::function<Batch()>& next_batch) {
  for (DeviceBatch& batch : batches_) batch.stage(ctx, next_batch(), copies_);
}

void GradientAccumulation::discard_staged() {
  for (DeviceBatch& batch : batches_) batch.discard_staged();
}

void GradientAccumulation::run(const Context& ctx, const Model& model, const Step& step) {
  statistics_.zero(ctx);
  for (int64_t i = 0; i < micro_batches_.count; ++i) run_leaf(ctx, model, step, i);
  gather_scalars(ctx);
  if (reduces_every_leaf()) return;
  finish_reduction();
  store_.bind_gradients(buffers_[0]);
}

void GradientAccumulation::gather_scalars(const Context& ctx) {
  Communicator& ranks = mesh_.joined({Axis::dp, Axis::cp});
  const Dims flat{scalars_.numel()};
  ranks.all_gather(scalars_.reshape(flat), gathered_.reshape({gathered_.numel()}))
      .order(ctx.stream);
  // Whole numbers, so their order does not matter. All branches travel together.
  if (statistics_.counts().numel() > 0)
    ranks.all_reduce(statistics_.counts(), ReduceOp::sum).order(ctx.stream);
  ordered_sum(
      ctx,
      {.values = gathered_.reshape({gathered_.numel()}), .places = loss_places_, .sum = loss_});
}

StepSums GradientAccumulation::read_sums(const Context& ctx) const {
  StepSums sums;
  if (ctx.counting()) return sums;
  sums.statistics = statistics_.read(ctx);
  const std::vector<double> table = sum_over_sequence(to_host(gathered_, ctx.stream));
  const int64_t all = micro_batches_.count * micro_batches_.ranks;
  sums.loss = halving_sum(table, kScalars, 0, 0, all);
  sums.statistics.balance_loss = halving_sum(table, kScalars, 1, 0, all);
  sums.statistics.z_loss = halving_sum(table, kScalars, 2, 0, all);
  return sums;
}

// Scalars by rank of dp and cp, to scalars by global micro-batch.
std::vector<double> GradientAccumulation::sum_over_sequence(
    const std::vector<double>& gathered) const {
  const int64_t cp = mesh_.shape().cp;
  const int64_t of_rank = micro_batches_.count * kScalars;
  std::vector<double> table(gathered.size() / cp);
  for (int64_t rank = 0; rank < micro_batches_.ranks; ++rank) {
    for (int64_t i = 0; i < of_rank; ++i) {
      const int64_t micro_batch = micro_batches_.index(rank, i / kScalars);
      double& sum = table[micro_batch * kScalars + i % kScalars];
      for (int64_t shard = 0; shard < cp; ++shard)
        sum += gathered[(rank * cp + shard) * of_rank + i];
    }
  }
  return table;
}

}  // namespace sluice
