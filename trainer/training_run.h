// A run: a Trainer with its folder, metrics, held-out evaluation, checkpoints and signals.
//
// runs/<name>/  config.yaml, env.json, metrics.jsonl, log.txt, TensorBoard events, checkpoints/
#pragma once

#include <memory>
#include <string>

#include "trainer/agreement.h"
#include "trainer/checkpoint/prune.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/metrics.h"
#include "trainer/progress.h"
#include "trainer/run_folder.h"
#include "trainer/signals.h"
#include "trainer/tensorboard.h"
#include "trainer/trainer.h"

namespace sluice {

struct RunOptions {
  std::string folder;
  std::string resume = "auto";  // auto, never, or the path of a run or checkpoint
  std::vector<std::string> arguments;
};

class TrainingRun {
 public:
  // Collective. Builds everything and, unless told otherwise, goes on from the newest good
  // checkpoint of the folder. Throws AgreedFailure.
  // On a GPU the mesh is of its memory; `world` stays in host memory.
  TrainingRun(const Config& config, const RunOptions& options, World& world, Mesh& mesh,
              const Place& place = {});
  ~TrainingRun();

  // To the last step, or until a signal asks for a stop. Returns ok or requeue; throws Error
  // (not_finite, io).
  ExitCode run();

 private:
  struct Requests {
    bool stop = false;
    bool checkpoint = false;
  };

  bool is_main() const { return peers_.rank() == 0; }
  std::string checkpoints() const { return options_.folder + "/checkpoints"; }
  std::string make_run_id();
  void open_folder();
  void open_logs();
  bool resume();  // whether there was something to resume from
  void resume_from(const VerifiedCheckpoint& found, bool in_place);
  void load_state(const VerifiedCheckpoint& found, LoadScope scope);
  void load_all(const VerifiedCheckpoint& found);
  void initialise_from(const std::string& path);
  void start_from_weights(const VerifiedCheckpoint& found);
  void check_data(const VerifiedCheckpoint& found) const;
  double measure_peak_flops();
  void make_trainer();

  bool last_step() const { return trainer_->steps_done() >= config_.train.steps; }
  bool due(int64_t every) const { return every > 0 && trainer_->steps_done() % every == 0; }
  void stop_if_hopeless(const StepReport& report);
  StepMetrics metrics_of(const StepReport& report) const;
  void evaluate_into(StepMetrics& metrics);
  void log(const StepMetrics& metrics);
  Requests agree_on_requests();
  void save();
  TrainingState state() const;
  void note(const std::string& text);

  Config config_;
  RunOptions options_;
  World& world_;
  Mesh& mesh_;
  Place place_;
  CommunicatorPeers peers_;
  SignalFlags signals_;
  std::unique_ptr<RunFolder> folder_;  // rank 0
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::unique_ptr<CheckpointPruner> pruner_;  // rank 0, as are the next four
  std::unique_ptr<MetricsWriter> metrics_file_;
  std::unique_ptr<AppendFile> log_file_;
  std::unique_ptr<TensorboardWriter> tensorboard_;
  std::unique_ptr<Progress> progress_;
  std::string run_id_;
  std::string memory_note_;        // of a GPU: what was planned, and what it has allocated
  std::string reproducible_note_;  // what equal bits cost there
  double peak_flops_ = 0;          // of all ranks, as measured at start
  double last_loss_ = 0;
  int64_t bad_steps_in_row_ = 0;
  int64_t saved_step_ = -1;
};

}  // namespace sluice
