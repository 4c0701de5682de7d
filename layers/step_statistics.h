// Auxiliary losses and expert loads of a step. Each layer adds once per micro-batch; a replay of
// the forward (recomputation) is given no sink and adds nothing.
//
// Every rank adds the share of its own tokens: the sum over all ranks, dp and cp, and over
// micro-batches is what the step has.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace sluice {

struct StepStatistics {
  // Auxiliary losses, already scaled by their coefficients: means over the step's rows.
  double balance_loss = 0;
  double z_loss = 0;
  // Choices of each expert, by branch index.
  std::map<int64_t, std::vector<double>> expert_counts;

  double auxiliary_loss() const { return balance_loss + z_loss; }
  // Largest load of an expert over the mean load, over all branches; 0 without experts.
  double expert_load_max_over_mean() const;
};

}  // namespace sluice
