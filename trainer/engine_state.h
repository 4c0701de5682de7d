// The state of an engine as checkpoints hold it: values, moments, and what is carried from step to
// step. Names and shapes are those of the whole model, so that any layout loads what any other has
// saved.
#pragma once

#include <vector>

#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/shard_files.h"
#include "trainer/step_engine.h"

namespace sluice {

// What this rank saves: its shards. Together the ranks give every element once.
std::vector<LocalPiece> pieces_to_save(const StepEngine& engine);

// Where this rank's part goes when loading: all values that it holds, and the moments of its
// shards. `scope` model_only: values alone.
std::vector<TensorSink> sinks_to_load(StepEngine& engine, LoadScope scope);

}  // namespace sluice
