#include "trainer/checkpoint/prune.h"

#include <algorithm>

#include "data/files.h"
#include "kernels/core/error.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/checkpoint/peers.h"
#include "trainer/checkpoint/verify.h"

namespace sluice {

namespace {

// Runs `work` for one name and notes how it went.
template <class Work>
void attempt(PruneReport& report, const std::string& name, Work&& work) {
  const Outcome outcome = outcome_of([&] {
    work();
    return std::string();
  });
  if (outcome.ok()) {
    report.removed.push_back(name);
  } else {
    report.problems.push_back(outcome.text);
  }
}

// A name that nothing has yet: a run may set the same step aside twice.
std::string unused(const std::string& path) {
  std::string candidate = path;
  for (int copy = 1; exists(candidate); ++copy) candidate = path + "-" + std::to_string(copy);
  return candidate;
}

}  // namespace

CheckpointPruner::CheckpointPruner(std::string checkpoints, std::string run_id, int64_t keep)
    : checkpoints_(std::move(checkpoints)),
      run_id_(std::move(run_id)),
      keep_(std::max(keep, kMinKeep)) {
  SLUICE_CHECK(safe_run_id(run_id_), "run id \"", run_id_, "\"");
}

bool CheckpointPruner::is_good(int64_t step) {
  if (bad_.contains(step)) return false;
  const std::string folder = checkpoints_ + "/" + step_name(step);
  const Outcome outcome = outcome_of([&] {
    if (good_.contains(step)) return size_problem(folder, read_manifest(folder));
    SelfPeers self;
    verify_checkpoint(folder, self);
    good_.insert(step);
    return std::string();
  });
  if (outcome.ok() && outcome.text.empty()) return true;
  good_.erase(step);
  bad_.insert(step);
  return false;
}

PruneReport CheckpointPruner::prune() {
  PruneReport report;
  const Outcome outcome = outcome_of([&] {
    int64_t num_good = 0;
    for (const int64_t step : list_steps(checkpoints_)) {
      if (num_good < keep_) {
        num_good += is_good(step) ? 1 : 0;
        continue;
      }
      const std::string trash = unused(checkpoints_ + "/" + trash_name(step, run_id_));
      attempt(report, step_name(step), [&] {
        rename_new(checkpoints_ + "/" + step_name(step), trash);
        sync_folder(checkpoints_);
        remove_folder(trash);
      });
      good_.erase(step);
      bad_.erase(step);
    }
    return std::string();
  });
  if (!outcome.ok()) report.problems.push_back(outcome.text);
  return report;
}

PruneReport remove_leftovers(const std::string& checkpoints) {
  PruneReport report;
  for (const std::string& name : list_leftovers(checkpoints))
    attempt(report, name, [&] { remove_folder(checkpoints + "/" + name); });
  return report;
}

PruneReport set_aside_newer(const std::string& checkpoints, int64_t step,
                            const std::string& run_id) {
  PruneReport report;
  for (const int64_t newer : list_steps(checkpoints)) {
    if (newer <= step) break;
    attempt(report, step_name(newer), [&] {
      rename_new(checkpoints + "/" + step_name(newer),
                 unused(checkpoints + "/" + aside_name(newer, run_id)));
    });
  }
  if (!report.removed.empty()) sync_folder(checkpoints);
  return report;
}

}  // namespace sluice
