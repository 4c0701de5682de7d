// A partition of rows that depends on their number alone. Sums over rows (weight gradients, norms)
// are taken per block and then over blocks in order, so the thread count never changes a bit.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sluice {

struct RowBlocks {
  static constexpr int64_t kMaxBlocks = 32;  // on the CPU; GPUs want more

  int64_t rows = 0;
  int64_t count = 0;

  explicit RowBlocks(int64_t rows, int64_t max_blocks = kMaxBlocks)
      : rows(rows), count(std::max<int64_t>(1, std::min(rows, max_blocks))) {}
  constexpr int64_t begin(int64_t block) const { return rows * block / count; }
  constexpr int64_t end(int64_t block) const { return rows * (block + 1) / count; }
};

}  // namespace sluice
