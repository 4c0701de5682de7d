// A micro-batch where the model runs: on the host the batch itself, on a GPU a copy at addresses
// that stay the same from step to step.
//
// A GPU's copy is made in two parts, so that the next batch travels while the present one is used:
// stage() brings it into pinned memory and from there to memory of its own, commit() to the
// addresses that the model reads.
#pragma once

#include <optional>

#include "data/batch.h"
#include "kernels/core/device_memory.h"
#include "layers/model.h"

namespace sluice {

class DeviceBatch {
 public:
  // The next batch, whose copy goes to the stream `copies`. input() stays.
  void stage(const Context& ctx, Batch batch, Stream copies);
  bool staged() const { return next_.has_value(); }
  void discard_staged() { next_.reset(); }
  // From now on input() is the staged batch, to what ctx.stream is given.
  void commit(const Context& ctx);
  // Both.
  void load(const Context& ctx, Batch batch);

  // What the model is given; valid until the next commit().
  ModelInput input() const { return {.tokens = tokens_, .targets = targets_, .rows = rows_}; }

 private:
  std::optional<Batch> next_, batch_;
  PinnedBuffer pinned_;
  Buffer staging_, storage_;
  StreamMark copied_;     // staging_ holds next_
  StreamMark committed_;  // storage_ holds batch_
  ConstTensorView tokens_, targets_;
  Rows rows_;
};

}  // namespace sluice
