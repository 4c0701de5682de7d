// What sluice-bench times: an operator at a shape, with tensors of its own, and what one pass costs
// by formula.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"

namespace sluice::bench {

// Of one pass: the least that moves to and from memory, the multiply-adds as two operations each,
// and the state updates of a scan. 0: not a measure of this operator.
struct Cost {
  double bytes = 0;
  double flops = 0;
  double updates = 0;
};

// One copy of an operator's tensors, f32. The harness makes several and rotates among them, so that
// inputs come from memory and not from the cache.
class Workload {
 public:
  virtual ~Workload() = default;
  virtual void forward(const Context& ctx) = 0;
  virtual void backward(const Context& ctx);
  // Operators that fuse the two override it.
  virtual void forward_backward(const Context& ctx);
  // The same, forward and any backward, by another library, if there is one to compare with.
  virtual void peer() {}
  size_t bytes() const;

 protected:
  TensorView zeros(const Dims& dims, DType dtype = DType::f32);
  // Uniform in [mean - spread, mean + spread].
  TensorView uniform(const Dims& dims, double spread = 1, double mean = 0);

 private:
  std::vector<Buffer> buffers_;
};

enum class Passes { forward, forward_and_backward, forward_and_fused };

struct Letter {
  const char* name = "";
  int64_t size = 0;
};

struct Case {
  std::vector<Letter> shape = {};
  Passes passes = Passes::forward_and_backward;
  Cost forward = {};
  Cost backward = {};
  bool has_peer = false;
  std::function<std::unique_ptr<Workload>()> make = {};
};

struct Family {
  std::string name;
  std::vector<Case> cases;
};

// Every operator that can be named on the command line, in the order of the output.
std::vector<Family> all_families();

// The parts of all_families, by file.
Family copy_family();
Family gemm_family();
Family norm_family();
Family gated_norm_family();
Family activation_family();
Family conv_family();
Family scan_family();
Family ssd_family();
Family attention_family();
Family moe_family();
Family xent_family();
Family adamw_family();
Family accumulate_family();

// The ceilings, as cases of their own: a copy by all threads, and OpenBLAS with all threads.
Case copy_ceiling();
Case gemm_ceiling();

}  // namespace sluice::bench
