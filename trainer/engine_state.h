// The state of an engine as checkpoints hold it: values, moments, and what is carried from step to
// step. Names and shapes are those of the whole model, so that any layout loads what any other has
// saved.
#pragma once

#include <vector>

#include "kernels/core/host_copy.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/shard_files.h"
#include "trainer/step_engine.h"

namespace sluice {

// The memory of an engine's state as the host sees it.
struct HostState {
  HostCopy values, exp_avg, exp_avg_sq;
  std::vector<HostCopy> carried;

  explicit HostState(const StepEngine& engine);
  // After loading.
  void write_back(StepEngine& engine) const;
};

// What this rank saves: its shards, in the memory of `host`. Together the ranks give every element
// once.
std::vector<LocalPiece> pieces_to_save(const StepEngine& engine, const HostState& host);

// Where in `host` this rank's part goes when loading: all values that it holds, and the moments of
// its shards. `scope` model_only: values alone.
std::vector<TensorSink> sinks_to_load(const StepEngine& engine, const HostState& host,
                                      LoadScope scope);

}  // namespace sluice
