// Whole training steps of reference configurations: forward, backward, gradient norm and AdamW.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/harness.h"

namespace sluice::bench {

struct StepCase {
  std::string config;  // configs/<config>.yaml
  int64_t B = 1;       // rows
  int64_t T = 512;     // tokens of a row
};
// On the CPU those that fit a laptop.
std::vector<StepCase> step_cases(const Target& target);

struct StepResult {
  StepCase step;
  int64_t num_parameters = 0;
  double first_step_s = 0;  // from building the model to the end of its first step
  Timing timing;
  double peak_gib = 0;  // values, gradients, moments and both arenas
  double flops = 0;     // of a step: forward and backward
  Ceilings ceilings;

  double tokens_per_s() const { return 1e3 * double(step.B * step.T) / timing.median_ms; }
  double mfu() const { return 1e3 * flops / timing.median_ms / ceilings.gemm_flops_per_s; }
};

StepResult measure_step(const StepCase& step, const Ceilings& ceilings);

std::string json_line(const StepResult& result, int num_threads);
std::string table_row(const StepResult& result);

}  // namespace sluice::bench
