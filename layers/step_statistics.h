// Auxiliary losses and expert loads of a step. Each layer adds once per micro-batch; a replay of
// the forward (recomputation) is given no sink and adds nothing.
//
// Every rank adds the share of its own tokens: the sum over all ranks, dp and cp, and over
// micro-batches is what the step has.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "kernels/core/context.h"

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

// Where layers add them, in memory of their device.
struct StatisticsSink {
  TensorView losses = {};                            // (2) f64: balance loss, z-loss
  std::map<int64_t, TensorView> expert_counts = {};  // by branch index: (experts) f64
};

// A branch that reports how its tokens chose.
struct ExpertBranch {
  int64_t branch = 0;
  int64_t experts = 0;
};

// Memory for a sink.
class StatisticsBuffer {
 public:
  // With allocate = false (planning) there is no memory.
  explicit StatisticsBuffer(const std::vector<ExpertBranch>& branches = {}, Device device = kCpu,
                            bool allocate = true);

  const StatisticsSink& sink() const { return sink_; }
  TensorView counts() const;  // of all branches, in their order: (n) f64
  void zero(const Context& ctx) const;
  // Waits for the stream. Zero in counting mode.
  StepStatistics read(const Context& ctx) const;

 private:
  Buffer storage_;
  TensorView all_;
  StatisticsSink sink_;
};

}  // namespace sluice
