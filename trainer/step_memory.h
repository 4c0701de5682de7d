// What a training step needs of memory on one rank, by running the same code with counting arenas.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/core/context.h"
#include "layers/model.h"

namespace sluice {

struct ArenaPeaks {
  size_t saved = 0;    // bytes
  size_t scratch = 0;  // bytes
};

// Peaks of Model::train (and Model::evaluate) at B rows of T tokens. Touches no tensor memory.
ArenaPeaks count_training(const Model& model, int64_t B, int64_t T);
ArenaPeaks count_logits(const Model& model, int64_t B, int64_t T);
ArenaPeaks count_step(const Model& model, int64_t B, int64_t max_tokens);

// The two arenas of a rank and the context over them.
class StepArenas {
 public:
  explicit StepArenas(const ArenaPeaks& peaks)
      : saved_("saved", peaks.saved, kCpu), scratch_("scratch", peaks.scratch, kCpu) {}

  Context context() {
    return {.device = kCpu, .stream = {}, .saved = &saved_, .scratch = &scratch_, .rng = {}};
  }

 private:
  Arena saved_;
  Arena scratch_;
};

}  // namespace sluice
