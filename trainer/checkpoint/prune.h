// Removes checkpoints that are no longer wanted, and what dead runs have left. One rank calls
// these, and holds the run's lock.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace sluice {

inline constexpr int64_t kMinKeep = 2;  // whatever checkpoint.keep says

// What has been done, for the log, and what could not be done: neither stops a run.
struct PruneReport {
  std::vector<std::string> removed;   // names
  std::vector<std::string> problems;  // one line each
};

class CheckpointPruner {
 public:
  CheckpointPruner(std::string checkpoints, std::string run_id, int64_t keep);

  // The checkpoint of this step was saved or loaded by this run: its hashes need no second look.
  void mark_good(int64_t step) { good_.insert(step); }

  // Keeps the newest `keep` good checkpoints, at least two, and everything newer than the last of
  // these; removes the rest. Only good ones count: a checkpoint of an earlier run is read in full
  // once, this run's are looked at for missing and cut-off files.
  PruneReport prune();

 private:
  bool is_good(int64_t step);

  std::string checkpoints_;
  std::string run_id_;
  int64_t keep_;
  std::set<int64_t> good_;
  std::set<int64_t> bad_;
};

// Removes temporary folders and trash; for the start of a run.
PruneReport remove_leftovers(const std::string& checkpoints);

// Renames checkpoints newer than `step`, from which the run goes on: damaged ones, or another
// future's. They are kept for people to look at, and no longer in the way of the steps to come.
PruneReport set_aside_newer(const std::string& checkpoints, int64_t step,
                            const std::string& run_id);

}  // namespace sluice
