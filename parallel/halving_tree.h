// The one order in which gradients are summed: of leaves [lo, hi),
//   sum(lo, hi) = sum(lo, mid) + sum(mid, hi),   mid = lo + ceil((hi - lo) / 2).
// The leaves are the step's micro-batches by global index, dealt to ranks in contiguous equal
// blocks. With a power of two of ranks the top of the tree falls exactly on the ranks, so one rule
// inside a rank (MicroBatchTree) and across ranks (Communicator) gives equal bits for 1, 2, 4, ...
// ranks.
#pragma once

#include <cstdint>

namespace sluice {

constexpr int64_t halving_middle(int64_t lo, int64_t hi) { return lo + (hi - lo + 1) / 2; }

}  // namespace sluice
