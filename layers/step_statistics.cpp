#include "layers/step_statistics.h"

#include <algorithm>

#include "kernels/core/device_memory.h"
#include "kernels/elementwise/elementwise.h"

namespace sluice {

namespace {

constexpr int64_t kLosses = 2;

}  // namespace

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

StatisticsBuffer::StatisticsBuffer(const std::vector<ExpertBranch>& branches, Device device,
                                   bool allocate) {
  int64_t elements = kLosses;
  for (const ExpertBranch& branch : branches) elements += branch.experts;
  if (allocate) storage_ = Buffer(elements * sizeof(double), device);
  all_ = TensorView(storage_.data(), {elements}, DType::f64, device);
  sink_.losses = all_.columns(0, {kLosses});
  int64_t next = kLosses;
  for (const ExpertBranch& branch : branches) {
    sink_.expert_counts[branch.branch] = all_.columns(next, {branch.experts});
    next += branch.experts;
  }
}

TensorView StatisticsBuffer::counts() const {
  return all_.columns(kLosses, {all_.numel() - kLosses});
}

void StatisticsBuffer::zero(const Context& ctx) const { sluice::zero(ctx, all_); }

StepStatistics StatisticsBuffer::read(const Context& ctx) const {
  StepStatistics statistics;
  if (ctx.counting()) return statistics;
  const std::vector<double> host = to_host(all_, ctx.stream);
  statistics.balance_loss = host[0];
  statistics.z_loss = host[1];
  auto next = host.begin() + kLosses;
  for (const auto& [branch, counts] : sink_.expert_counts) {
    statistics.expert_counts[branch].assign(next, next + counts.numel());
    next += counts.numel();
  }
  return statistics;
}

}  // namespace sluice
