// The gradient of a step, summed over all micro-batches of the world in one order: the halving tree
// over their global index (kernels/core/halving_tree.h). Inside a rank the sum is a stack of
// buffers; across ranks it is the reducers', bucket by bucket while a backward runs.
//
// - zero 0, 1: a rank adds up its micro-batches, and reduces them in the last one's backward. They
//   are neighbours, so its sum is a subtree if the number of dp ranks is a power of two.
// - zero 2: every micro-batch is reduced in its own backward, and a rank adds up its shards. The
//   ranks take micro-batches in turn, so what is reduced together is a subtree if the number of
//   micro-batches of a rank is a power of two.
// Then the sum has the bits of one rank's.
//
// On a GPU that is so with train.reproducible: layout. With `run` all micro-batches of a rank add
// into one buffer, one after the other, and NCCL sums over ranks: the same bits for the same
// layout, without the tree's memory.
#pragma once

#include <functional>
#include <vector>

#include "data/batch.h"
#include "layers/model.h"
#include "parallel/micro_batch_tree.h"
#include "trainer/carried_states.h"
#include "trainer/config.h"
#include "trainer/device_batch.h"
#include "trainer/sharded_arena.h"

namespace sluice {

// How the micro-batches of a step are dealt to the dp ranks.
struct MicroBatches {
  int64_t count = 0;  // of each rank
  int64_t rows = 0;   // of each micro-batch
  int64_t ranks = 1;  // dp
  bool in_turn = false;

  // Global number of a rank's i-th.
  int64_t index(int64_t rank, int64_t i) const {
    return in_turn ? i * ranks + rank : rank * count + i;
  }
};
// Throws UsageError if global_batch does not deal out. `zero`: parallel.zero.
MicroBatches deal_micro_batches(const TrainConfig& train, int64_t zero, int64_t dp);

// Sums over the step, world-wide; the same on every rank, and for every number of ranks.
struct StepSums {
  double loss = 0;  // of token losses
  StepStatistics statistics;
};

class GradientAccumulation {
 public:
  // The references must outlive it. With allocate = false (planning) there is no memory.
  GradientAccumulation(ParameterStore& store, const Model& model, const ShardedArena& arena,
                       const Mesh& mesh, const MicroBatches& micro_batches,
                       Reproducible reproducible, bool allocate = true);

  // What all micro-batches of a step have in common.
  struct Step {
    RoutingTape* routing = nullptr;          // optional
    const CarriedStates* carried = nullptr;  // optional
  };
  // Takes the step's micro-batches, in order, unless they were staged, and 1 / target tokens of the
  // step, world-wide.
  void load(const Context& ctx, const std::function<Batch()>& next_batch, double loss_scale);
  // On a GPU: takes the micro-batches of the next step, which travel while this one runs.
  void stage(const Context& ctx, const std::function<Batch()>& next_batch);
  void discard_staged();
  // Runs every micro-batch and reduces, without waiting for a GPU. Afterwards gradients() holds the
  // world's sum of what this rank owns (with zero 0: of everything).
  void run(const Context& ctx, const Model& model, const Step& step);
  HeldTensor gradients() const;
  // (1) f64: the world's sum of token losses in some order. Not finite if any loss is not.
  TensorView loss() const { return loss_; }
  // What run() has summed; waits for the stream.
  StepSums read_sums(const Context& ctx) const;

  const std::vector<GradientReducer>& reducers() const { return reducers_; }
  int64_t bytes() const { return bytes_; }

 private:
  // What one micro-batch adds to StepSums, as it travels: loss, balance loss, z-loss.
  static constexpr int64_t kScalars = 3;

  bool reduces_every_leaf() const { return bool(leaf_); }
  void run_leaf(const Context& ctx, const Model& model, const Step& step, int64_t index);
  void begin_reduction(const Context& ctx, const TensorView& flat, const TensorView& packed);
  void ready(ParameterId id);
  void finish_reduction();
  void allocate_gradients(bool allocate);
  void allocate_scalars(bool allocate);
  void gather_scalars(const Context& ctx);
  std::vector<double> sum_over_sequence(const std::vector<double>& gathered) const;
  // One buffer for all micro-batches.
  bool adds_in_place() const { return !in_tree_; }

  ParameterStore& store_;
  const ShardedArena& arena_;
  const Mesh& mesh_;
  MicroBatches micro_batches_;
  bool in_tree_;  // all gradients are summed in one order
  MicroBatchTree tree_;
  std::vector<GradientReducer> reducers_;  // by group of the arena
  int64_t bytes_ = 0;
  Buffer storage_;
  std::vector<TensorView> buffers_;  // of the tree: whole arenas, or owned shards packed
  TensorView leaf_;                  // a whole arena, where a leaf's gradient is not in buffers_
  Buffer scalar_storage_;
  TensorView scalars_;                // (micro-batches of this rank, kScalars) f64
  TensorView gathered_;               // the same of all ranks of dp and cp
  TensorView loss_places_;            // i64: the losses among gathered_
  TensorView loss_scale_;             // (1) f64
  TensorView loss_;                   // (1) f64
  StatisticsBuffer statistics_;       // expert counts of this step
  std::vector<DeviceBatch> batches_;  // of the step
  OwnedStream copies_;                // of the next step's batches
};

}  // namespace sluice
