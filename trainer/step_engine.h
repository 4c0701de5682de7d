// One rank's part of a training step: the model, its gradient over all ranks of the mesh, and the
// optimizer. It knows nothing of token stores, files or schedules, and holds no global state: many
// engines may live in one process, as ranks that are threads.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "data/batch.h"
#include "kernels/core/device_memory.h"
#include "parallel/mesh.h"
#include "trainer/carried_states.h"
#include "trainer/config.h"
#include "trainer/gradient_accumulation.h"
#include "trainer/gradient_norm.h"
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

struct StepInput {
  double lr = 0;
  int64_t targets = 0;  // target tokens of the whole step, world-wide
  // This rank's micro-batches in order: num_micro_batches() calls.
  std::function<Batch()> next_batch = {};
  // next_batch goes on with the next step's: a GPU takes them while this step runs.
  bool stage_next = false;
  RoutingTape* routing = nullptr;  // optional
};

// Bytes on one rank.
struct EngineMemory {
  int64_t values = 0;
  int64_t gradients = 0;  // all buffers of the accumulation
  int64_t optimizer = 0;
  int64_t saved = 0;  // activations kept for the backward
  int64_t scratch = 0;
  int64_t carried = 0;  // states from step to step

  int64_t total() const { return values + gradients + optimizer + saved + scratch + carried; }
};

class StepEngine {
 public:
  // Collective over the mesh, which must outlive the engine. Of the configuration it reads model,
  // train, optimizer, parallel.zero, data.carry_state and seed. Builds the model with its initial
  // values and allocates everything. Throws UsageError for what the configuration and the mesh do
  // not allow.
  //
  // On a planned mesh nothing is allocated: such an engine only counts.
  //
  // On a GPU the groups of the mesh must be of its memory, and work goes to place.stream.
  StepEngine(const Config& config, const Mesh& mesh, DType dtype = DType::f32,
             const Place& place = {});
  StepEngine(const StepEngine&) = delete;  // its parts refer to each other
  StepEngine& operator=(const StepEngine&) = delete;

  // Collective. Values, moments and t are updated unless the step was not finite. The host waits
  // for a GPU once, when all of the step was enqueued.
  StepReport step(const StepInput& input);
  // The same without memory, on a planned mesh: afterwards the traffic of the mesh's groups is that
  // of a step, and memory() says what it needs. An evaluation may need more.
  void count_step();
  void count_evaluation();

  // Which micro-batches this rank takes in a step: their number, the first row of one in the
  // step's global batch, the number of its rows, and the part of every row.
  int64_t num_micro_batches() const { return micro_batches_.count; }
  int64_t first_row(int64_t micro_batch) const {
    return micro_batches_.index(mesh_.at().dp, micro_batch) * micro_batches_.rows;
  }
  int64_t micro_batch_rows() const { return micro_batches_.rows; }
  SequenceShard sequence_shard() const { return {mesh_.at().cp, mesh_.shape().cp}; }

  const Mesh& mesh() const { return mesh_; }
  const ShardedArena& arena() const { return arena_; }
  ParameterStore& store() { return store_; }
  const ParameterStore& store() const { return store_; }
  Optimizer& optimizer() { return optimizer_; }
  const Optimizer& optimizer() const { return optimizer_; }
  const Model& model() const { return model_; }
  const CarriedStates* carried() const { return carried_.get(); }  // null: rows start afresh
  Context context() { return arenas_.context(); }
  const Place& place() const { return place_; }
  EngineMemory memory() const;
  bool uses_graph() const { return graph_ != nullptr; }
  // How a GPU gets a step, for a log: as one graph, or why not. Empty on the CPU.
  std::string describe_launches() const;

  // Batches that were taken for the next step, if there are any, are not those of the next step.
  void discard_staged() { accumulation_.discard_staged(); }

  // Collective. The last step's gradient, unclipped, into a flat tensor of the store's layout: of
  // all parameters that this rank holds, whoever owns them.
  void gather_gradients(const TensorView& flat);

 private:
  StepArenas make_arenas() const;
  std::string why_no_graph() const;
  void enqueue(const StepInput& input);
  void accumulate_gradients(const StepInput& input);
  void clip();
  void update();
  StepReport read_report(const StepInput& input) const;
  void end_step(const StepReport& report);

  Config config_;
  const Mesh& mesh_;
  Place place_;
  MicroBatches micro_batches_;
  ParameterStore store_;
  Model model_;
  ShardedArena arena_;
  Optimizer optimizer_;
  GradientAccumulation accumulation_;
  GradientNorm squares_;
  Buffer norm_storage_;
  TensorView norm_;  // (1) f64
  std::unique_ptr<CarriedStates> carried_;
  StepArenas arenas_;
  std::unique_ptr<DeviceGraph> graph_;  // of enqueue(); null: every step is launched anew
  int steps_before_graph_ = 0;
};

}  // namespace sluice
