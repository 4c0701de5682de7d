// Training, step by step, without any file but the token stores: a StepEngine with the rows that it
// trains on, the schedule, and evaluation. TrainingRun (trainer/training_run.h) puts folder,
// metrics and checkpoints around it.
#pragma once

#include <memory>

#include "data/prefetch.h"
#include "data/sampler.h"
#include "trainer/evaluation.h"
#include "trainer/step_engine.h"

namespace sluice {

class Trainer {
 public:
  // Collective. Builds the model with its initial values (unless they are loaded afterwards) and
  // allocates everything. Throws UsageError for what the configuration and the world do not allow.
  Trainer(const Config& config, const Mesh& mesh, const Place& place = {});

  // Step `next_step()`, which counts on.
  StepReport step();
  // Where the run goes on from: after loading values, moments and t into store() and optimizer().
  void set_steps_done(int64_t steps, int64_t rows_done);
  int64_t steps_done() const { return steps_done_; }
  int64_t rows_done() const;  // rows of the run that were consumed

  EvaluationResult evaluate_held_out();

  StepEngine& engine() { return engine_; }
  ParameterStore& store() { return engine_.store(); }
  Optimizer& optimizer() { return engine_.optimizer(); }
  const Model& model() const { return engine_.model(); }
  Sampler& sampler() { return *sampler_; }
  int64_t memory_bytes() const { return engine_.memory().total(); }  // on this rank

 private:
  void start_prefetch();

  Config config_;
  std::unique_ptr<Sampler> sampler_;
  StepEngine engine_;
  std::unique_ptr<TokenStore> held_out_;
  std::unique_ptr<Prefetcher> prefetcher_;
  int64_t steps_done_ = 0;
};

}  // namespace sluice
