// Training, step by step, without any file but the token stores: the model, its gradient over all
// ranks, and the optimizer. TrainingRun (trainer/training_run.h) puts folder, metrics and
// checkpoints around it.
#pragma once

#include <memory>
#include <vector>

#include "data/prefetch.h"
#include "data/sampler.h"
#include "parallel/mesh.h"
#include "trainer/config.h"
#include "trainer/evaluation.h"
#include "trainer/gradient_accumulation.h"
#include "trainer/optimizer.h"
#include "trainer/step_memory.h"

namespace sluice {

// What one step did; equal on all ranks but for the times.
struct StepReport {
  int64_t step = 0;      // of the update, from 1
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

class Trainer {
 public:
  // Collective. Builds the model with its initial values (unless they are loaded afterwards) and
  // allocates everything. Throws UsageError for what the configuration and the world do not allow.
  Trainer(const Config& config, Mesh& mesh);

  // Step `next_step()`, which counts on.
  StepReport step();
  // Where the run goes on from: after loading values, moments and t into store() and optimizer().
  void set_steps_done(int64_t steps, int64_t rows_done);
  int64_t steps_done() const { return steps_done_; }
  int64_t rows_done() const;  // rows of the run that were consumed

  EvaluationResult evaluate_held_out();

  ParameterStore& store() { return store_; }
  Optimizer& optimizer() { return optimizer_; }
  const Model& model() const { return model_; }
  Sampler& sampler() { return *sampler_; }
  const ArenaPeaks& arena_peaks() const { return peaks_; }
  int64_t memory_bytes() const;  // of arenas, values, gradients and moments on this rank

 private:
  void accumulate_gradients(StepReport& report);
  void measure_gradient(StepReport& report);
  void update(StepReport& report);
  void start_prefetch();

  Config config_;
  Communicator& group_;  // dp
  StepShape shape_;
  std::unique_ptr<Sampler> sampler_;
  ParameterStore store_;
  Model model_;
  Optimizer optimizer_;
  std::unique_ptr<GradientAccumulation> accumulation_;
  ArenaPeaks peaks_;
  std::unique_ptr<StepArenas> arenas_;
  std::unique_ptr<TokenStore> held_out_;
  std::unique_ptr<Prefetcher> prefetcher_;
  int64_t steps_done_ = 0;
};

}  // namespace sluice
