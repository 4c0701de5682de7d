// The one order in which gradients are summed: of leaves [lo, hi),
//   sum(lo, hi) = sum(lo, mid) + sum(mid, hi),   mid = lo + ceil((hi - lo) / 2).
// The leaves are the step's micro-batches by global index, dealt to ranks in contiguous equal
// blocks. With a power of two of ranks the top of the tree falls exactly on the ranks, so one rule
// inside a rank (MicroBatchTree) and across ranks (Communicator, GradientReducer) gives equal bits
// for 1, 2, 4, ... ranks.
#pragma once

#include <cstdint>

namespace sluice {

constexpr int64_t halving_middle(int64_t lo, int64_t hi) { return lo + (hi - lo + 1) / 2; }

// The same with a stack of sums: leaf after leaf is pushed, onto `depth` others, and then the top
// is added to the one below it, `merges` times. After the last leaf one is left. The stack never
// holds more than floor(log2(leaves)) + 1.
struct HalvingLeaf {
  int depth = 0;
  int merges = 0;
};

// Down from the root: a left sibling that waits for us lies on the stack; steps to the right since
// the last step to the left are the nodes that this leaf completes.
constexpr HalvingLeaf halving_leaf(int64_t index, int64_t leaves) {
  HalvingLeaf leaf;
  int64_t lo = 0;
  int64_t hi = leaves;
  while (hi - lo > 1) {
    const int64_t middle = halving_middle(lo, hi);
    if (index < middle) {
      hi = middle;
      leaf.merges = 0;
    } else {
      lo = middle;
      ++leaf.depth;
      ++leaf.merges;
    }
  }
  return leaf;
}

}  // namespace sluice
