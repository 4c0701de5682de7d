#include "parallel/micro_batch_tree.h"

#include <bit>

#include "kernels/core/halving_tree.h"
#include "kernels/elementwise/elementwise.h"

namespace sluice {

MicroBatchTree::MicroBatchTree(int64_t leaves) : leaves_(leaves) {
  SLUICE_CHECK(leaves >= 1, "a step has at least one micro-batch, got ", leaves);
  buffers_ = std::bit_width(uint64_t(leaves));
}

MicroBatchTree::Leaf MicroBatchTree::leaf(int64_t index) const {
  SLUICE_CHECK(index >= 0 && index < leaves_, "micro-batch ", index, " of ", leaves_);
  const HalvingLeaf leaf = halving_leaf(index, leaves_);
  return {.buffer = leaf.depth, .merges = leaf.merges};
}

void merge_leaf(const Context& ctx, const MicroBatchTree::Leaf& leaf,
                std::span<const TensorView> buffers, int64_t begin, int64_t end) {
  SLUICE_CHECK(leaf.buffer < int(buffers.size()) && leaf.merges <= leaf.buffer, "leaf of buffer ",
               leaf.buffer, " with ", leaf.merges, " merges among ", buffers.size(), " buffers");
  for (int merge = 0; merge < leaf.merges; ++merge) {
    const TensorView& from = buffers[leaf.buffer - merge];
    const TensorView& into = buffers[leaf.buffer - merge - 1];
    SLUICE_CHECK(from.dims.rank == 1 && from.dims == into.dims && from.dtype == into.dtype,
                 "gradient buffers differ: ", to_string(from.dims), " and ", to_string(into.dims));
    SLUICE_CHECK(begin >= 0 && begin <= end && end <= from.numel(), "elements [", begin, ", ", end,
                 ") of ", from.numel());
    add(ctx, from.columns(begin, {end - begin}), into.columns(begin, {end - begin}));
  }
}

}  // namespace sluice
