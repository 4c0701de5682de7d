// accumulate, tree_sum: what one order of sums costs beside forwards and backwards.
#include "kernels/elementwise/elementwise.h"
#include "parallel/micro_batch_tree.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// A leaf of the tree: its buffer is zeroed before the backward adds to it, and added to another
// after. (Of m leaves m - 1 are added.)
class Accumulate final : public Workload {
 public:
  Accumulate(const Target& target, int64_t n)
      : Workload(target), buffers_{stat_uniform({n}), stat_uniform({n})} {}
  void forward(const Context& ctx) override {
    zero(ctx, buffers_[1]);
    merge_leaf(ctx, {.buffer = 1, .merges = 1}, buffers_, 0, buffers_[0].numel());
  }

 private:
  TensorView buffers_[2];
};

// A rank's shard of a bucket, of all ranks.
class TreeSum final : public Workload {
 public:
  TreeSum(const Target& target, int64_t ranks, int64_t n)
      : Workload(target), shards_(stat_uniform({ranks, n})), sum_(stat_zeros({n})) {}
  void forward(const Context& ctx) override { tree_sum(ctx, shards_, sum_); }

 private:
  TensorView shards_, sum_;
};

}  // namespace

// Writes zeros, reads both buffers, writes one.
Case accumulate_case(const Target& target, int64_t n) {
  return {.shape = {{"n", n}},
          .passes = Passes::forward,
          .forward = {.bytes = 4 * kFloat * double(n)},
          .make = [=] { return std::make_unique<Accumulate>(target, n); }};
}

Case tree_sum_case(const Target& target, int64_t ranks, int64_t n) {
  return {.shape = {{"ranks", ranks}, {"n", n}},
          .passes = Passes::forward,
          .forward = {.bytes = double(ranks + 1) * kFloat * double(n)},
          .make = [=] { return std::make_unique<TreeSum>(target, ranks, n); }};
}

}  // namespace sluice::bench
