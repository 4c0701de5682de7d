// accumulate: what the tree over micro-batches costs beside their forwards and backwards.
#include "kernels/elementwise/elementwise.h"
#include "parallel/micro_batch_tree.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// A leaf of the tree: its buffer is zeroed before the backward adds to it, and added to another
// after. (Of m leaves m - 1 are added.)
class Accumulate final : public Workload {
 public:
  explicit Accumulate(int64_t n) : Workload({}), buffers_{uniform({n}), uniform({n})} {}
  void forward(const Context& ctx) override {
    zero(ctx, buffers_[1]);
    merge_leaf({.buffer = 1, .merges = 1}, buffers_, 0, buffers_[0].numel());
  }

 private:
  TensorView buffers_[2];
};

}  // namespace

// Writes zeros, reads both buffers, writes one.
Case accumulate_case(int64_t n) {
  return {.shape = {{"n", n}},
          .passes = Passes::forward,
          .forward = {.bytes = 4 * kFloat * double(n)},
          .make = [=] { return std::make_unique<Accumulate>(n); }};
}

}  // namespace sluice::bench
