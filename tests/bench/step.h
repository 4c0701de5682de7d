// Whole training steps of reference configurations: forward, backward, gradient norm and AdamW.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/cases.h"
#include "tests/bench/report.h"

namespace sluice::bench {

struct StepResult {
  StepCase step;
  int64_t num_parameters = 0;
  double first_step_s = 0;  // from building the model to the end of its first step
  Timing timing;
  double peak_gib = 0;          // values, gradients, moments and both arenas
  double flops = 0;             // of a step: forward and backward, recomputation not counted
  double peak_flops_per_s = 0;  // what published shares are of; 0: not known of this device
  Ceilings ceilings;

  double tokens_per_s() const { return 1e3 * double(step.B * step.T) / timing.median_ms; }
  double flops_per_s() const { return 1e3 * flops / timing.median_ms; }
};

// The configuration lies in the folder `configs`.
StepResult measure_step(const StepCase& step, const std::string& configs, const Target& target,
                        const Ceilings& ceilings);

std::string json_line(const StepResult& result, const Machine& machine);
std::string table_row(const StepResult& result);

}  // namespace sluice::bench
