#include "parallel/micro_batch_tree.h"

#include <bit>

#include "kernels/core/dispatch.h"
#include "parallel/halving_tree.h"

namespace sluice {

MicroBatchTree::MicroBatchTree(int64_t leaves) : leaves_(leaves) {
  SLUICE_CHECK(leaves >= 1, "a step has at least one micro-batch, got ", leaves);
  buffers_ = std::bit_width(uint64_t(leaves));
}

// Down from the root: a left sibling that waits for us holds a buffer; steps to the right since the
// last step to the left are the nodes that this leaf completes.
MicroBatchTree::Leaf MicroBatchTree::leaf(int64_t index) const {
  SLUICE_CHECK(index >= 0 && index < leaves_, "micro-batch ", index, " of ", leaves_);
  Leaf leaf;
  int64_t lo = 0;
  int64_t hi = leaves_;
  while (hi - lo > 1) {
    const int64_t middle = halving_middle(lo, hi);
    if (index < middle) {
      hi = middle;
      leaf.merges = 0;
    } else {
      lo = middle;
      ++leaf.buffer;
      ++leaf.merges;
    }
  }
  return leaf;
}

void merge_leaf(const MicroBatchTree::Leaf& leaf, std::span<const TensorView> buffers,
                int64_t begin, int64_t end) {
  SLUICE_CHECK(leaf.buffer < int(buffers.size()) && leaf.merges <= leaf.buffer, "leaf of buffer ",
               leaf.buffer, " with ", leaf.merges, " merges among ", buffers.size(), " buffers");
  for (int merge = 0; merge < leaf.merges; ++merge) {
    const TensorView& from = buffers[leaf.buffer - merge];
    const TensorView& into = buffers[leaf.buffer - merge - 1];
    SLUICE_CHECK(from.dims.rank == 1 && from.dims == into.dims && from.dtype == into.dtype,
                 "gradient buffers differ: ", to_string(from.dims), " and ", to_string(into.dims));
    SLUICE_CHECK(begin >= 0 && begin <= end && end <= from.numel(), "elements [", begin, ", ", end,
                 ") of ", from.numel());
    dispatch_float(into.dtype, [&]<class T>() {
      const T* source = from.as<T>();
      T* target = into.as<T>();
#pragma omp parallel for simd
      for (int64_t i = begin; i < end; ++i) target[i] += source[i];
    });
  }
}

}  // namespace sluice
