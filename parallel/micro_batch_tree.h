// Gradient accumulation in the order of kernels/core/halving_tree.h, with a stack of buffers: leaf
// i writes buffer leaf(i).buffer (zeroed by the caller, since operators accumulate), then the top
// of the stack is added down, leaf(i).merges times. The sum ends in buffer 0.
//
//   MicroBatchTree tree(accumulation);
//   for (i = 0; i < accumulation; ++i) {
//     ... zero buffers[tree.leaf(i).buffer], run forward and backward into it ...
//     merge_leaf(ctx, tree.leaf(i), buffers, begin, end);  // for ranges that cover the arena
//   }
//
// In the last micro-batch the ranges are the branches, as their backward ends: right after its
// merge a range of buffer 0 is final, and may go to GradientReducer::ready().
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/context.h"

namespace sluice {

class MicroBatchTree {
 public:
  struct Leaf {
    int buffer = 0;  // where the leaf's gradient goes
    int merges = 0;  // then buffer - 1 += buffer, buffer - 2 += buffer - 1, ..., so many times
  };

  explicit MicroBatchTree(int64_t leaves);

  int64_t leaves() const { return leaves_; }
  int buffers() const { return buffers_; }  // floor(log2(leaves)) + 1
  Leaf leaf(int64_t index) const;

 private:
  int64_t leaves_;
  int buffers_ = 1;
};

// The merges of one leaf on elements [begin, end) of the buffers, which are 1-D, f32 or f64.
void merge_leaf(const Context& ctx, const MicroBatchTree::Leaf& leaf,
                std::span<const TensorView> buffers, int64_t begin, int64_t end);

}  // namespace sluice
