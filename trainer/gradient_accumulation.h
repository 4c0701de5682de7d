// The gradient of a step, summed over all micro-batches of the world in one order: the halving tree
// over their global index (parallel/halving_tree.h). Rank r of dp holds micro-batches
// [r m, (r + 1) m) of the M = m * dp. Inside a rank the sum is a stack of buffers; across ranks it
// is the reducer's, and starts bucket by bucket while the last micro-batch's backward runs.
#pragma once

#include <functional>
#include <vector>

#include "data/batch.h"
#include "layers/model.h"
#include "parallel/gradient_reducer.h"
#include "parallel/micro_batch_tree.h"

namespace sluice {

// Sums over the step, world-wide; the same on every rank, and for every number of ranks.
struct StepSums {
  double loss = 0;  // of token losses
  StepStatistics statistics;
};

class GradientAccumulation {
 public:
  // `micro_batches`: of this rank in a step of `step_rows` rows, world-wide. With allocate = false
  // (planning) there is no memory.
  GradientAccumulation(ParameterStore& store, Communicator& group, int64_t micro_batches,
                       int64_t step_rows, bool allocate = true);

  // What all micro-batches of a step have in common.
  struct Step {
    double loss_scale = 1;           // 1 / target tokens of the step, world-wide
    RoutingTape* routing = nullptr;  // optional
  };
  // Runs every micro-batch (next_batch gives them in order) and reduces. Afterwards the store's
  // bound gradients hold the world's sum.
  StepSums run(const Context& ctx, const Model& model, const Step& step,
               const std::function<Batch()>& next_batch);

  int64_t bytes() const { return int64_t(tree_.buffers()) * buffer_bytes_; }

 private:
  // What one micro-batch adds to StepSums, as it travels: loss, balance loss, z-loss.
  static constexpr int64_t kScalars = 3;
  void run_leaf(const Context& ctx, const Model& model, const Step& step, int64_t index,
                const Batch& batch);
  StepSums sum_over_world();

  ParameterStore& store_;
  Communicator& group_;
  int64_t step_rows_;
  MicroBatchTree tree_;
  GradientReducer reducer_;
  int64_t buffer_bytes_;
  Buffer storage_;
  std::vector<TensorView> buffers_;
  std::vector<double> scalars_;  // (micro_batches, kScalars)
  StepStatistics statistics_;    // of this rank's micro-batches: expert counts
};

}  // namespace sluice
