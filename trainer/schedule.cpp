#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/core/error.h"

namespace sluice {
namespace {

// From 1 at `begin` to `final` at `end`, along a straight line.
double line_down(double step, double begin, double end, double final) {
  if (step <= begin) return 1;
  const double t = std::min((step - begin) / (end - begin), 1.0);
  return 1 + t * (final - 1);
}

double share_of_peak(const ScheduleConfig& schedule, double step, double steps) {
  const double warmup = double(schedule.warmup);
  switch (schedule.type) {
    case ScheduleType::constant:
      return 1;
    case ScheduleType::cosine: {
      const double t = std::clamp((step - warmup) / std::max(steps - warmup, 1.0), 0.0, 1.0);
      const double wave = (1 + std::cos(std::numbers::pi * t)) / 2;
      return schedule.final + (1 - schedule.final) * wave;
    }
    case ScheduleType::wsd: {
      const double begin = std::max(warmup, steps - std::round(schedule.decay * steps));
      return begin < steps ? line_down(step, begin, steps, schedule.final) : 1;
    }
  }
  SLUICE_CHECK(false, "unknown schedule");
}

}  // namespace

double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps) {
  SLUICE_CHECK(step >= 1, "expected a step from 1 on, got ", step);
  if (step <= schedule.warmup) return peak * double(step) / double(schedule.warmup);
  return peak * share_of_peak(schedule, double(step), double(steps));
}

}  // namespace sluice
