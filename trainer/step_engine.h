// One rank's part of a training step: the model, its gradient over all ranks of the mesh, and the
// optimizer. It knows nothing of token stores, files or schedules, and holds no global state: many
// engines may live in one process, as ranks that are threads.
#pragma once

#include <functional>
#include <memory>

#include "data/batch.h"
#include "parallel/mesh.h"
#include "trainer/config.h"
#include "trainer/gradient_accumulation.h"
#include "trainer/optimizer.h"
#include "trainer/step_memory.h"

namespace sluice {

// What one step did; equal on all ranks but for the times.
struct StepReport {
  int64_t step = 0;      // of the update, from 1 (set by Trainer, as are the times)
  double loss = 0;       // cross-entropy, mean over the world's target tokens
  double grad_norm = 0;  // before clipping
  double lr = 0;
  bool finite = true;  // of loss and gradient; if not, no update was applied
  StepStatistics statistics;
  double data_wait_s = 0;
  double step_s = 0;
};

// How a step is dealt to the ranks. Throws UsageError if it cannot be.
struct StepShape {
  int64_t micro_batches = 0;  // of a rank
  int64_t first_row = 0;      // of this rank in the step
};
StepShape step_shape(const TrainConfig& train, int64_t dp, int64_t dp_rank);

struct StepInput {
  double lr = 0;
  int64_t targets = 0;  // target tokens of the whole step, world-wide
  // This rank's micro-batches in order: num_micro_batches() calls.
  std::function<Batch()> next_batch = {};
  RoutingTape* routing = nullptr;  // optional
};

class StepEngine {
 public:
  // Collective over the mesh, which must outlive the engine. Of the configuration it reads model,
  // train, optimizer, parallel.zero and seed. Builds the model with its initial values and
  // allocates everything. Throws UsageError for what the configuration and the mesh do not allow.
  StepEngine(const Config& config, const Mesh& mesh, DType dtype = DType::f32);

  // Collective. Values, moments and t are updated unless the step was not finite.
  StepReport step(const StepInput& input);

  // Which micro-batches this rank takes in a step: their number, the first row of one in the
  // step's global batch, the number of its rows, and the part of every row.
  int64_t num_micro_batches() const { return shape_.micro_batches; }
  int64_t first_row(int64_t micro_batch) const {
    return shape_.first_row + micro_batch * config_.train.micro_batch;
  }
  int64_t micro_batch_rows() const { return config_.train.micro_batch; }
  SequenceShard sequence_shard() const { return {mesh_.at().cp, mesh_.shape().cp}; }

  const Mesh& mesh() const { return mesh_; }
  ParameterStore& store() { return store_; }
  const ParameterStore& store() const { return store_; }
  Optimizer& optimizer() { return optimizer_; }
  const Model& model() const { return model_; }
  Context context() { return arenas_->context(); }
  const ArenaPeaks& arena_peaks() const { return peaks_; }
  int64_t memory_bytes() const;  // of arenas, values, gradients and moments on this rank

 private:
  void accumulate_gradients(const StepInput& input, StepReport& report);
  void measure_gradient(StepReport& report);
  void update(StepReport& report);

  Config config_;
  const Mesh& mesh_;
  StepShape shape_;
  ParameterStore store_;
  Model model_;
  Optimizer optimizer_;
  std::unique_ptr<GradientAccumulation> accumulation_;
  ArenaPeaks peaks_;
  std::unique_ptr<StepArenas> arenas_;
};

}  // namespace sluice
