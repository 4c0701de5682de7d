// AdamW over the arenas of a ParameterStore: runs of neighbouring parameters that share their flags
// are updated as one span, padding included (it is zero and stays zero).
#pragma once

#include <vector>

#include "layers/parameter_store.h"
#include "trainer/config.h"

namespace sluice {

class Optimizer {
 public:
  // With allocate = false (planning) the moments have no memory.
  Optimizer(const OptimizerConfig& config, const ParameterStore& store, bool allocate = true);

  // One applied update: values from gradients times grad_scale. Counts t.
  void update(const Context& ctx, double lr, double grad_scale);

  int64_t t() const { return t_; }  // applied updates so far
  void set_t(int64_t t) { t_ = t; }
  TensorView exp_avg() const { return exp_avg_; }        // (flat_size)
  TensorView exp_avg_sq() const { return exp_avg_sq_; }  // (flat_size)

 private:
  struct Span {
    int64_t begin, end;
    double weight_decay, lr_scale;
  };

  OptimizerConfig config_;
  const ParameterStore& store_;
  std::vector<Span> spans_;
  Buffer storage_;
  TensorView exp_avg_, exp_avg_sq_;
  int64_t t_ = 0;
};

}  // namespace sluice
