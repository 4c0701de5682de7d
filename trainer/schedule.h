// The learning rate as a pure function of the step.
#pragma once

#include <cstdint>

#include "trainer/config.h"

namespace sluice {

// Of update `step` = 1 .. steps. Warm-up: peak * step / warmup. Then, with t the share of the steps
// after the warm-up that are done (1 at the last step) and f = final * peak:
//   cosine     f + (peak - f) (1 + cos(pi t)) / 2
//   wsd        peak, and over the last decay * steps updates a straight line down to f
//   constant   peak
// A warm-up that is longer than the run is cut off with it.
double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps);

}  // namespace sluice
