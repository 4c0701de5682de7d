// AdamW over the arenas of a ParameterStore: runs of neighbouring parameters that share their flags
// are updated as one span, padding included (it is zero and stays zero). Moments are kept of what
// this rank holds (ShardedArena::held()) only.
#pragma once

#include <vector>

#include "kernels/adamw/adamw.h"
#include "trainer/config.h"
#include "trainer/sharded_arena.h"

namespace sluice {

class Optimizer {
 public:
  // `held` must outlive it. With allocate = false (planning) there is no memory.
  Optimizer(const OptimizerConfig& config, const ParameterStore& store, const PackedSlices& held,
            bool allocate = true);

  // One update: begin_update() tells the device the learning rate and the bias corrections of
  // update t() + 1; grad_scale() and apply() are written there (kernels/grad_norm); then every
  // slice that is held is updated once, in parts of any size and order. Whoever learns that it was
  // applied counts it.
  void begin_update(const Context& ctx, double lr);
  TensorView grad_scale() const { return scalars_.columns(kGradScale, {1}); }  // (1) f64
  TensorView apply() const { return scalars_.columns(kApply, {1}); }           // (1) f64
  void update(const Context& ctx, const HeldTensor& gradients, const Slice& part) const;
  void count_update() { ++t_; }

  int64_t t() const { return t_; }  // applied updates so far
  void set_t(int64_t t) { t_ = t; }
  HeldTensor exp_avg() const { return {exp_avg_, &held_}; }
  HeldTensor exp_avg_sq() const { return {exp_avg_sq_, &held_}; }
  int64_t bytes() const { return 2 * exp_avg_.numel() * int64_t(size_of(exp_avg_.dtype)); }

 private:
  void find_spans();

  OptimizerConfig config_;
  const ParameterStore& store_;
  const PackedSlices& held_;
  std::vector<double> host_spans_;  // (spans, kNumSpanColumns), ascending
  Buffer moments_, tables_;
  TensorView exp_avg_, exp_avg_sq_;  // (held elements)
  TensorView scalars_;               // (kNumUpdateScalars) f64
  TensorView spans_;                 // (spans, kNumSpanColumns) f64
  int64_t t_ = 0;
};

}  // namespace sluice
