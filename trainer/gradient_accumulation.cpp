#include "trainer/gradient_accumulation.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "parallel/halving_tree.h"

namespace sluice {

namespace {

GradientBuckets layout_of(const ParameterStore& store) {
  GradientBuckets layout;
  for (const Parameter& parameter : store.parameters()) layout.starts.push_back(parameter.offset);
  std::sort(layout.starts.begin(), layout.starts.end());
  layout.elements = store.flat_size();
  layout.dtype = stat_dtype(store.dtype());
  return layout;
}

double halving_sum(const std::vector<double>& values, int64_t stride, int64_t column, int64_t lo,
                   int64_t hi) {
  if (hi - lo == 1) return values[lo * stride + column];
  const int64_t middle = halving_middle(lo, hi);
  return halving_sum(values, stride, column, lo, middle) +
         halving_sum(values, stride, column, middle, hi);
}

}  // namespace

GradientAccumulation::GradientAccumulation(ParameterStore& store, Communicator& group,
                                           int64_t micro_batches, int64_t step_rows, bool allocate)
    : store_(store),
      group_(group),
      step_rows_(step_rows),
      tree_(micro_batches),
      reducer_(group, layout_of(store)),
      buffer_bytes_(store.flat_size() * int64_t(size_of(stat_dtype(store.dtype())))),
      scalars_(micro_batches * kScalars) {
  if (allocate) storage_ = Buffer(bytes(), kCpu);
  char* const data = static_cast<char*>(storage_.data());
  for (int i = 0; i < tree_.buffers(); ++i) {
    buffers_.emplace_back(data == nullptr ? nullptr : data + i * buffer_bytes_,
                          Dims{store.flat_size()}, stat_dtype(store.dtype()));
  }
  store_.bind_gradients(buffers_[0]);
}

void GradientAccumulation::run_leaf(const Context& ctx, const Model& model, const Step& step,
                                    int64_t index, const Batch& batch) {
  const MicroBatchTree::Leaf leaf = tree_.leaf(index);
  const bool last = index + 1 == tree_.leaves();
  zero(ctx, buffers_[leaf.buffer]);
  store_.bind_gradients(buffers_[leaf.buffer]);
  StepStatistics statistics;
  statistics.expert_counts.swap(statistics_.expert_counts);  // counts go on, losses start anew
  TrainingPass pass{
      .loss_scale = step.loss_scale, .statistics = &statistics, .routing = step.routing};
  if (last) {
    reducer_.begin(buffers_[0]);
    pass.gradient_ready = [&](ParameterId id) {
      const int64_t begin = store_.parameter(id).offset;
      const int64_t end = store_.padded_end(id);
      merge_leaf(leaf, buffers_, begin, end);
      reducer_.ready(begin, end);
    };
  }
  Rows rows = batch.rows();
  rows.step_rows = step_rows_;
  double* const scalars = &scalars_[index * kScalars];
  scalars[0] =
      model.train(ctx, {.tokens = batch.tokens(), .targets = batch.targets(), .rows = rows}, pass);
  scalars[1] = statistics.balance_loss;
  scalars[2] = statistics.z_loss;
  statistics_.expert_counts.swap(statistics.expert_counts);
  if (!last) merge_leaf(leaf, buffers_, 0, store_.flat_size());
}

StepSums GradientAccumulation::run(const Context& ctx, const Model& model, const Step& step,
                                   const std::function<Batch()>& next_batch) {
  statistics_ = {};
  for (int64_t i = 0; i < tree_.leaves(); ++i) run_leaf(ctx, model, step, i, next_batch());
  StepSums sums = sum_over_world();
  reducer_.finish();
  store_.bind_gradients(buffers_[0]);
  return sums;
}

StepSums GradientAccumulation::sum_over_world() {
  const int64_t micro_batches = tree_.leaves() * group_.size();
  std::vector<double> all(micro_batches * kScalars);
  group_
      .all_gather(ConstTensorView(scalars_.data(), {int64_t(scalars_.size())}),
                  TensorView(all.data(), {int64_t(all.size())}))
      .wait();
  StepSums sums;
  sums.loss = halving_sum(all, kScalars, 0, 0, micro_batches);
  sums.statistics.balance_loss = halving_sum(all, kScalars, 1, 0, micro_batches);
  sums.statistics.z_loss = halving_sum(all, kScalars, 2, 0, micro_batches);
  sums.statistics.expert_counts = std::move(statistics_.expert_counts);
  for (auto& [branch, counts] : sums.statistics.expert_counts) {
    group_.all_reduce(TensorView(counts.data(), {int64_t(counts.size())}), ReduceOp::sum).wait();
  }
  return sums;
}

}  // namespace sluice
