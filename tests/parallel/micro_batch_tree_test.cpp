#include "parallel/micro_batch_tree.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/halving_tree.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

constexpr int64_t kElements = 5;

float leaf_value(int64_t leaf, int64_t element) {
  return float(random_normal({.seed = 1, .stream = uint64_t(leaf)}, uint64_t(element)));
}

// The definition.
float tree_sum(int64_t lo, int64_t hi, int64_t element) {
  if (hi - lo == 1) return leaf_value(lo, element);
  const int64_t middle = halving_middle(lo, hi);
  return tree_sum(lo, middle, element) + tree_sum(middle, hi, element);
}

// Leaves [first, first + count) as a rank sums them, by the buffers of MicroBatchTree.
std::vector<float> buffered_sum(int64_t first, int64_t count) {
  TestContext ctx;
  const MicroBatchTree tree(count);
  std::vector<std::vector<float>> memory(tree.buffers(), std::vector<float>(kElements));
  std::vector<TensorView> buffers;
  for (std::vector<float>& buffer : memory)
    buffers.push_back(TensorView(buffer.data(), {kElements}));
  for (int64_t i = 0; i < count; ++i) {
    const MicroBatchTree::Leaf leaf = tree.leaf(i);
    for (int64_t k = 0; k < kElements; ++k) memory[leaf.buffer][k] = leaf_value(first + i, k);
    merge_leaf(ctx, leaf, buffers, 3, kElements);  // ranges in any order
    merge_leaf(ctx, leaf, buffers, 0, 3);
  }
  return memory[0];
}

TEST(MicroBatchTree, HandComputed) {
  // ((0 1) 2): leaf 1 completes the left half, leaf 2 the root.
  const MicroBatchTree tree(3);
  EXPECT_EQ(tree.buffers(), 2);
  const int buffers[] = {0, 1, 1};
  const int merges[] = {0, 1, 1};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(tree.leaf(i).buffer, buffers[i]);
    EXPECT_EQ(tree.leaf(i).merges, merges[i]);
  }
  EXPECT_EQ(MicroBatchTree(8).leaf(7).merges, 3);
}

TEST(MicroBatchTree, EqualsTheRecursiveDefinitionBitForBit) {
  for (int64_t count = 1; count <= 64; ++count) {
    const std::vector<float> sum = buffered_sum(0, count);
    for (int64_t k = 0; k < kElements; ++k)
      ASSERT_EQ(sum[k], tree_sum(0, count, k)) << count << " micro-batches";
  }
}

TEST(MicroBatchTree, NeedsNoMoreBuffersThanItSays) {
  for (int64_t count = 1; count <= 300; ++count) {
    const MicroBatchTree tree(count);
    EXPECT_LE(int64_t{1} << (tree.buffers() - 1), count);
    int most = 0;
    int64_t held = 0;  // buffers in use after a leaf
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(tree.leaf(i).buffer, held) << "leaf " << i << " of " << count;
      most = std::max(most, tree.leaf(i).buffer + 1);
      held += 1 - tree.leaf(i).merges;
    }
    EXPECT_EQ(held, 1);
    EXPECT_EQ(most, tree.buffers());
  }
}

// Decision 4: a rank's block is a subtree if there is a power of two of ranks.
TEST(MicroBatchTree, RanksWithEqualBlocksEqualOneRank) {
  for (const int64_t ranks : {2, 4, 8}) {
    for (int64_t per_rank = 1; per_rank <= 12; ++per_rank) {
      std::vector<std::vector<float>> sums;
      for (int64_t rank = 0; rank < ranks; ++rank)
        sums.push_back(buffered_sum(rank * per_rank, per_rank));
      const std::vector<float> one_rank = buffered_sum(0, ranks * per_rank);
      for (int64_t width = 1; width < ranks; width *= 2) {
        for (int64_t rank = 0; rank < ranks; rank += 2 * width) {
          for (int64_t k = 0; k < kElements; ++k) sums[rank][k] += sums[rank + width][k];
        }
      }
      ASSERT_EQ(sums[0], one_rank) << ranks << " ranks of " << per_rank;
    }
  }
}

TEST(MicroBatchTree, RefusesNonsense) {
  EXPECT_THROW(MicroBatchTree(0), Error);
  EXPECT_THROW(MicroBatchTree(3).leaf(3), Error);
  TestContext ctx;
  std::vector<float> a(4), b(5);
  const TensorView buffers[] = {TensorView(a.data(), {4}), TensorView(b.data(), {5})};
  EXPECT_THROW(merge_leaf(ctx, {.buffer = 1, .merges = 1}, buffers, 0, 4), Error);
  EXPECT_THROW(merge_leaf(ctx, {.buffer = 2, .merges = 1}, buffers, 0, 4), Error);
}

}  // namespace
}  // namespace sluice::test
