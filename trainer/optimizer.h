// AdamW over the arenas of a ParameterStore: runs of neighbouring parameters that share their flags
// are updated as one span, padding included (it is zero and stays zero). Moments are kept of what
// this rank holds (ShardedArena::held()) only.
#pragma once

#include <vector>

#include "trainer/config.h"
#include "trainer/sharded_arena.h"

namespace sluice {

class Optimizer {
 public:
  // `held` must outlive it. With allocate = false (planning) the moments have no memory.
  Optimizer(const OptimizerConfig& config, const ParameterStore& store, const PackedSlices& held,
            bool allocate = true);

  // One applied update: begin_update() counts t, then every slice that is held is updated once, in
  // parts of any size and order.
  void begin_update() { ++t_; }
  struct Update {
    double lr = 0;
    double grad_scale = 1;
    HeldTensor gradients = {};
  };
  void update(const Context& ctx, const Update& update, const Slice& part);

  int64_t t() const { return t_; }  // applied updates so far
  void set_t(int64_t t) { t_ = t; }
  HeldTensor exp_avg() const { return {exp_avg_, &held_}; }
  HeldTensor exp_avg_sq() const { return {exp_avg_sq_, &held_}; }
  int64_t bytes() const { return 2 * exp_avg_.numel() * int64_t(size_of(exp_avg_.dtype)); }

 private:
  struct Span {
    int64_t begin, end;
    double weight_decay, lr_scale;
  };

  OptimizerConfig config_;
  const ParameterStore& store_;
  const PackedSlices& held_;
  std::vector<Span> spans_;  // ascending
  Buffer storage_;
  TensorView exp_avg_, exp_avg_sq_;  // (held elements)
  int64_t t_ = 0;
};

}  // namespace sluice
