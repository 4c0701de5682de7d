#include "tests/bench/harness.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace sluice::bench {
namespace {

constexpr double kEnoughSeconds = 0.3;  // of repetitions ...
constexpr int64_t kEnoughRuns = 5;      // ... but at least so many,
constexpr double kMostSeconds = 1.5;    // unless that takes longer than this
constexpr int64_t kMostRuns = 300;
// Virtual machines report the host's whole cache, of which a few cores never fill so much.
constexpr size_t kMostRotation = size_t{192} << 20;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Timing time_runs(const std::function<void(int64_t)>& run) {
  run(0);  // warm-up
  std::vector<double> ms;
  double total = 0;
  while (true) {
    const Clock::time_point start = Clock::now();
    run(int64_t(ms.size()) + 1);
    const double seconds = seconds_since(start);
    total += seconds;
    ms.push_back(1e3 * seconds);
    const int64_t runs = int64_t(ms.size());
    if (runs >= kMostRuns || total >= kMostSeconds) break;
    if (runs >= kEnoughRuns && total >= kEnoughSeconds) break;
  }
  std::sort(ms.begin(), ms.end());
  const auto percentile = [&](double share) { return ms[size_t(share * double(ms.size() - 1))]; };
  const double median = percentile(0.5);
  return {.median_ms = median, .spread = (percentile(0.9) - percentile(0.1)) / median};
}

void run_passes(Workload& workload, const Context& ctx, Passes passes) {
  switch (passes) {
    case Passes::forward:
      return workload.forward(ctx);
    case Passes::forward_and_backward:
      workload.forward(ctx);
      return workload.backward(ctx);
    case Passes::forward_and_fused:
      workload.forward(ctx);
      return workload.forward_backward(ctx);
  }
}

// The scratch that a workload needs, found as the trainer finds it: by a counting run.
size_t scratch_bytes(Workload& workload, Passes passes) {
  Arena saved = Arena::counting("saved", kCpu);
  Arena scratch = Arena::counting("scratch", kCpu);
  const Context ctx{.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  run_passes(workload, ctx, passes);
  return scratch.peak();
}

}  // namespace

size_t rotation_bytes() {
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const size_t one = cache > 0 ? size_t(cache) : size_t{32} << 20;
  return std::min(2 * one, kMostRotation);
}

Result measure(const std::string& op, const Case& c, const Ceilings& ceilings) {
  std::vector<std::unique_ptr<Workload>> copies;
  copies.push_back(c.make());
  const size_t bytes = std::max<size_t>(1, copies[0]->bytes());
  while (copies.size() * bytes < rotation_bytes()) copies.push_back(c.make());

  Arena saved("saved", 0, kCpu);
  Arena scratch("scratch", scratch_bytes(*copies[0], c.passes), kCpu);
  const Context ctx{.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  for (const auto& copy : copies) run_passes(*copy, ctx, c.passes);  // warm, and ready for backward

  const auto rotate = [&](auto&& pass) {
    return time_runs([&](int64_t run) { pass(*copies[size_t(run) % copies.size()]); });
  };
  Result result{.op = op,
                .shape = c.shape,
                .forward = c.forward,
                .both = {.bytes = c.forward.bytes + c.backward.bytes,
                         .flops = c.forward.flops + c.backward.flops,
                         .updates = c.forward.updates + c.backward.updates},
                .fwd = {},
                .bwd = {},
                .fwdbwd = {},
                .peer = {},
                .ceilings = ceilings};
  result.fwd = rotate([&](Workload& w) { w.forward(ctx); });
  if (c.passes == Passes::forward_and_backward) {
    result.bwd = rotate([&](Workload& w) { w.backward(ctx); });
  }
  if (c.passes != Passes::forward) {
    result.fwdbwd = rotate([&](Workload& w) { w.forward_backward(ctx); });
  }
  if (c.has_peer) result.peer = rotate([](Workload& w) { w.peer(); });
  return result;
}

Ceilings measure_ceilings() {
  const Result copy = measure("copy", copy_ceiling(), {});
  const Result gemm = measure("gemm", gemm_ceiling(), {});
  return {.copy_bytes_per_s = copy.forward.bytes / (1e-3 * copy.fwd->median_ms),
          .gemm_flops_per_s = gemm.forward.flops / (1e-3 * gemm.fwd->median_ms)};
}

}  // namespace sluice::bench
