// Times workloads: warm-up, then repetitions over rotating copies, medians. The ceilings take their
// turns among the repetitions, so that a share holds whatever else the machine does meanwhile.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/bench/workload.h"

namespace sluice::bench {

struct Timing {
  double median_ms = 0;
  double spread = 0;  // (90th percentile - 10th) / median
};

// What a copy and OpenBLAS reach; 0: not measured.
struct Ceilings {
  double copy_bytes_per_s = 0;
  double gemm_flops_per_s = 0;
};

struct Result {
  std::string op;
  std::vector<Letter> shape;
  Cost forward;
  Cost both;  // forward and backward; the forward alone where there is no backward
  std::optional<Timing> fwd;
  std::optional<Timing> bwd;
  std::optional<Timing> fwdbwd;
  std::optional<Timing> peer;
  Ceilings ceilings;  // in turns with this operator; copy for what moves bytes, gemm for flops

  // What rates are taken from: forward and backward together, if there is a backward.
  const Timing& whole() const { return fwdbwd ? *fwdbwd : *fwd; }
};

using Copies = std::vector<std::unique_ptr<Workload>>;

class Harness {
 public:
  Harness();
  Ceilings measure_ceilings();
  Result measure(const std::string& op, const Case& c);

 private:
  Case copy_case_, gemm_case_;
  Copies copy_, gemm_;
};

// What is rotated over: twice the last-level cache, within reason.
size_t rotation_bytes();

}  // namespace sluice::bench
