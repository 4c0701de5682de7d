#include "tests/bench/harness.h"

#include <algorithm>

namespace sluice::bench {

Timing timing_of(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  const auto percentile = [&](double share) { return ms[size_t(share * double(ms.size() - 1))]; };
  return {.median_ms = percentile(0.5), .p10_ms = percentile(0.1), .p90_ms = percentile(0.9)};
}

std::unique_ptr<Harness> make_harness(const Target& target) {
  return target.device.is_cuda() ? make_gpu_harness(target) : make_cpu_harness();
}

Copies make_copies(const Case& c, size_t rotation_bytes) {
  Copies copies;
  copies.push_back(c.make());
  const size_t bytes = std::max<size_t>(1, copies[0]->bytes());
  while (copies.size() * bytes < rotation_bytes) copies.push_back(c.make());
  return copies;
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

size_t scratch_bytes(Workload& workload, const Target& target, Passes passes) {
  Arena saved = Arena::counting("saved", target.device);
  Arena scratch = Arena::counting("scratch", target.device);
  const Context ctx{.device = target.device,
                    .stream = target.stream,
                    .saved = &saved,
                    .scratch = &scratch,
                    .rng = {}};
  run_passes(workload, ctx, passes);
  return scratch.peak();
}

Result untimed(const std::string& op, const Case& c) {
  return {.op = op,
          .part = c.part,
          .shape = c.shape,
          .forward = c.forward,
          .backward = c.backward,
          .fwd = {},
          .bwd = {},
          .fwdbwd = {},
          .peer = {},
          .wall_ms = {},
          .ceilings = {}};
}

}  // namespace sluice::bench
