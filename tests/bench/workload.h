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

// Where operators run, and the dtype of activations and matrices. Statistics, states, vectors and
// the gradients of parameters are f32 everywhere.
struct Target {
  Device device = kCpu;
  DType dtype = DType::f32;
  Stream stream = {};

  double width() const { return double(size_of(dtype)); }
};

inline constexpr double kFloat = sizeof(float);

// Of one pass: the least that moves to and from memory, the multiply-adds as two operations each,
// and the state updates of a scan. 0: not a measure of this operator.
struct Cost {
  double bytes = 0;
  double flops = 0;
  double updates = 0;
};

// One copy of an operator's tensors. The harness makes several and rotates among them, so that
// inputs come from memory and not from the cache.
class Workload {
 public:
  explicit Workload(const Target& target) : target_(target) {}
  virtual ~Workload() = default;
  virtual void forward(const Context& ctx) = 0;
  virtual void backward(const Context& ctx);
  // Operators that fuse the two override it.
  virtual void forward_backward(const Context& ctx);
  // The same, forward and any backward, by another library, if there is one to compare with.
  virtual void peer() {}
  size_t bytes() const;

 protected:
  const Target& target() const { return target_; }
  TensorView zeros(const Dims& dims, DType dtype);
  TensorView zeros(const Dims& dims) { return zeros(dims, target_.dtype); }
  TensorView stat_zeros(const Dims& dims) { return zeros(dims, stat_dtype(target_.dtype)); }
  // Uniform in [mean - spread, mean + spread].
  TensorView uniform(const Dims& dims, double spread = 1, double mean = 0) {
    return random(dims, target_.dtype, spread, mean);
  }
  TensorView stat_uniform(const Dims& dims, double spread = 1, double mean = 0) {
    return random(dims, stat_dtype(target_.dtype), spread, mean);
  }

  TensorView random(const Dims& dims, DType dtype, double spread = 1, double mean = 0);

 private:
  Target target_;
  std::vector<Buffer> buffers_;
};

enum class Passes { forward, forward_and_backward, forward_and_fused };

struct Letter {
  const char* name = "";
  int64_t size = 0;
};

struct Case {
  const char* part = "";  // which of an operator's calls, where there are several to tell apart
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

}  // namespace sluice::bench
