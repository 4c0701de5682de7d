// Saves checkpoints by a protocol that leaves, whenever it is cut off, either the new checkpoint
// whole or no sign of it beside a leftover that is cleaned up:
//
//   1. room for 1.2 times the size is looked for, and .step-N.<run id>.tmp/ made;
//   2. every rank writes its files there, each preallocated, written, fsynced, closed, and hashed
//      from memory;
//   3. rank 0 gathers what was written, writes the manifest, fsyncs it and the folder, renames the
//      folder to step-N, fsyncs the parent, and updates the hint `latest`.
//
// The process must ignore SIGXFSZ, so that a file size limit is an error like a full disk.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/peers.h"
#include "trainer/checkpoint/shard_files.h"

namespace sluice {

struct CheckpointWriterOptions {
  std::string folder;  // <run>/checkpoints
  std::string run_id;  // of this process tree, the same on all ranks; see safe_run_id()
  int64_t max_file_bytes = int64_t{1} << 30;  // of elements: a file is held in memory
  int max_failures = 3;                       // in a row
  // Called with the name of what has just been done, on the rank that did it: for tests.
  std::function<void(const std::string& stage)> on_stage;
  // Free bytes of the file system that holds a folder; by default free_bytes().
  std::function<int64_t(const std::string& folder)> free_bytes;
};

struct SaveResult {
  bool saved = false;
  std::string folder;   // where it is, if it is
  std::string problem;  // why it is not; or a warning: `latest` could not be updated
  int64_t bytes = 0;    // written by all ranks
};

class CheckpointWriter {
 public:
  CheckpointWriter(CheckpointWriterOptions options, CheckpointPeers& peers);

  // Collective; every rank gets the same result. `pieces` are what this rank contributes: together
  // the ranks must give every element once. `state` is taken from rank 0.
  //
  // A failure of the system is a failed save: nothing of it is left, older checkpoints are intact,
  // and training goes on. The third in a row throws IoError.
  SaveResult save(const TrainingState& state, const std::vector<LocalPiece>& pieces);

 private:
  // The parts of the protocol. What a rank has to say to the others is returned as text.
  std::string prepare(int64_t step, const std::vector<std::string>& needed_bytes) const;
  std::string write_files(const std::vector<LocalPiece>& pieces) const;
  std::string commit(const TrainingState& state, const std::vector<Outcome>& written) const;
  void update_latest(int64_t step, SaveResult& result) const;
  SaveResult attempt(const TrainingState& state, const std::vector<LocalPiece>& pieces);
  // Rank 0 removes the temporary folder.
  SaveResult give_up(const Outcome& failure);
  void stage(const std::string& name) const;

  CheckpointWriterOptions options_;
  CheckpointPeers* peers_;
  std::string temporary_;  // the folder that is being written
  int failures_ = 0;
};

}  // namespace sluice
