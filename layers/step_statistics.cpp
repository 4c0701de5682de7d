#include "layers/step_statistics.h"

#include <algorithm>

namespace sluice {

double StepStatistics::expert_load_max_over_mean() const {
  double worst = 0;
  for (const auto& [branch, counts] : expert_counts) {
    double total = 0;
    for (const double count : counts) total += count;
    if (total == 0) continue;
    worst =
        std::max(worst, *std::max_element(counts.begin(), counts.end()) * counts.size() / total);
  }
  return worst;
}

}  // namespace sluice
