// A micro-batch where the model runs: on the host the batch itself, on a GPU a copy at addresses
// that stay the same from step to step.
#pragma once

#include <optional>

#include "data/batch.h"
#include "layers/model.h"

namespace sluice {

class DeviceBatch {
 public:
  void load(const Context& ctx, Batch batch);
  // What the model is given; valid until the next load().
  ModelInput input() const { return {.tokens = tokens_, .targets = targets_, .rows = rows_}; }

 private:
  std::optional<Batch> batch_;
  Buffer storage_;
  ConstTensorView tokens_, targets_;
  Rows rows_;
};

}  // namespace sluice
