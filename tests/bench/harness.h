// Times workloads: warm-up, then repetitions over rotating copies, medians. On the CPU the ceilings
// take their turns among the repetitions, so that a share holds whatever else the machine does
// meanwhile; on a GPU, which nobody else uses, they are measured first and last.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/bench/workload.h"

namespace sluice::bench {

struct Timing {
  double median_ms = 0;
  double p10_ms = 0, p90_ms = 0;

  double spread() const { return (p90_ms - p10_ms) / median_ms; }
};
Timing timing_of(std::vector<double> ms);

// What a copy and a square product reach; 0: not measured.
struct Ceilings {
  double copy_bytes_per_s = 0;
  double gemm_flops_per_s = 0;
};

struct Result {
  std::string op;
  std::string part;
  std::vector<Letter> shape;
  Cost forward;
  Cost backward;
  std::optional<Timing> fwd;
  std::optional<Timing> bwd;
  std::optional<Timing> fwdbwd;
  std::optional<Timing> peer;
  std::optional<double> wall_ms;  // of forward and backward, the host's time to start them included
  Ceilings ceilings;  // in turns with this operator, or first; copy for bytes, gemm for flops

  // Forward and backward together, if there is a backward.
  const Timing& whole() const { return fwdbwd ? *fwdbwd : *fwd; }
  Cost both() const {
    return {.bytes = forward.bytes + backward.bytes,
            .flops = forward.flops + backward.flops,
            .updates = forward.updates + backward.updates};
  }
};

class Harness {
 public:
  virtual ~Harness() = default;
  virtual Ceilings measure_ceilings() = 0;
  virtual Result measure(const std::string& op, const Case& c) = 0;
};
std::unique_ptr<Harness> make_harness(const Target& target);

// The two of make_harness.
std::unique_ptr<Harness> make_cpu_harness();
std::unique_ptr<Harness> make_gpu_harness(const Target& target);

// What both do.
using Copies = std::vector<std::unique_ptr<Workload>>;
// At least so many bytes, so that what a pass leaves in the cache is gone when its copy has its
// turn again.
Copies make_copies(const Case& c, size_t rotation_bytes);
void run_passes(Workload& workload, const Context& ctx, Passes passes);
// The scratch that a workload needs, found as the trainer finds it: by a counting run.
size_t scratch_bytes(Workload& workload, const Target& target, Passes passes);
Result untimed(const std::string& op, const Case& c);

}  // namespace sluice::bench
