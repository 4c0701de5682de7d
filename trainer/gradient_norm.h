// The norm of a gradient of which every rank holds its shards: every parameter counts once,
// world-wide. The sums of squares of blocks are gathered and added in the order of the blocks, so
// the norm has the same bits however the arena is cut.
#pragma once

#include <vector>

#include "trainer/sharded_arena.h"

namespace sluice {

class GradientNorm {
 public:
  // Both must outlive it.
  GradientNorm(const ShardedArena& arena, const Mesh& mesh);

  // Collective. The sum of squares; not finite if any element is not.
  double squared(const Context& ctx, const HeldTensor& gradients);

 private:
  // Of one reduction group. The memory is made for the first step that is not only counted.
  struct Blocks {
    ReduceGroup which = ReduceGroup::dense;
    Communicator* ranks = nullptr;
    GradientBuckets buckets;
    int64_t of_rank = 0;          // blocks
    std::vector<double> own;      // sums of this rank's blocks, in the order of the arena
    std::vector<double> all;      // of all ranks, in rank order
    std::vector<int64_t> places;  // in `all`, of every block in the order of the arena
  };
  static void allocate(Blocks& blocks);
  double sum_of(const Context& ctx, const HeldTensor& gradients, Blocks& blocks);

  Communicator& experts_;  // ep: ranks whose expert parameters are others
  std::vector<Blocks> blocks_;
};

}  // namespace sluice
