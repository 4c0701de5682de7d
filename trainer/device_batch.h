// A micro-batch where the model runs: on the host itself, on a GPU a copy at addresses that stay
// the same from step to step.
#pragma once

#include "data/batch.h"
#include "layers/model.h"

namespace sluice {

class DeviceBatch {
 public:
  // What the model is given; valid until the next load(), and as long as `batch`.
  ModelInput load(const Context& ctx, const Batch& batch);

 private:
  Buffer storage_;
  Rows rows_;
};

}  // namespace sluice
