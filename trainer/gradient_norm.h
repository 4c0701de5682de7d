// The norm of a gradient of which every rank holds its shards: every parameter counts once,
// world-wide. The sums of squares of blocks are gathered and added in the order of the blocks, so
// the norm has the same bits however the arena is cut.
#pragma once

#include <vector>

#include "trainer/sharded_arena.h"

namespace sluice {

class GradientNorm {
 public:
  // Both must outlive it. With allocate = false (planning) there is no memory.
  GradientNorm(const ShardedArena& arena, const Mesh& mesh, Device device, bool allocate = true);

  // Collective. Sums of squares (n) f64, to be added in order: of the dense parameters, then of
  // every ep rank's experts. Not finite if any element is not.
  ConstTensorView squares(const Context& ctx, const HeldTensor& gradients);

 private:
  // Of one reduction group, in blocks of kNormBlock elements.
  struct Blocks {
    ReduceGroup which = ReduceGroup::dense;
    Communicator* ranks = nullptr;
    std::vector<Slice> shards;  // of this rank, in the order of the arena
    Buffer storage;
    TensorView own;     // sums of this rank's blocks, in the order of the arena
    TensorView all;     // of all ranks, in rank order; own is a part of it
    TensorView places;  // i64: in `all`, of every block in the order of the arena
  };
  void allocate(Blocks& blocks, const ShardedArena::Group& group, Device device, bool allocate);
  void sum_group(const Context& ctx, const HeldTensor& gradients, const Blocks& blocks,
                 const TensorView& sum);

  Communicator& experts_;  // ep: ranks whose expert parameters are others
  std::vector<Blocks> blocks_;
  Buffer storage_;
  TensorView squares_;
};

}  // namespace sluice
