// How norms lay rows over a GPU. Plain C++, for dispatchers: they size scratch by the blocks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sluice::cuda {

inline constexpr int kRowValues = 16;       // of a row, in a thread's registers
inline constexpr int kMaxRowThreads = 512;  // leaves a thread 128 registers
inline constexpr int64_t kMaxRowWidth = int64_t{kRowValues} * kMaxRowThreads;

// Dynamic shared memory of a block for rows on their way; sm_80 has as much.
inline constexpr int64_t kMaxStaging = 160 << 10;
inline constexpr int kRowStages = 2;  // rows of a block on their way

// Threads of a block that owns rows of `width`: whole warps.
constexpr int row_threads(int64_t width) {
  const int64_t warp_columns = 32 * kRowValues;
  const int64_t warps = (width + warp_columns - 1) / warp_columns;
  return int(std::clamp<int64_t>(warps, 1, kMaxRowThreads / 32)) * 32;
}

// Bytes of shared memory for rows of `width`, of which a column takes so many.
constexpr int64_t row_staging(int64_t width, int64_t column_bytes) {
  return kRowStages * kRowValues * row_threads(width) * column_bytes;
}
// Whether the kernels that hold a row in registers take rows of `width`. widest: bytes of an
// element of the tensor with the widest; column_bytes: of the rows on their way.
constexpr bool holds_rows(int64_t width, int64_t widest, int64_t column_bytes) {
  return width <= kMaxRowWidth && width % (16 / widest) == 0 &&
         row_staging(width, column_bytes) <= kMaxStaging;
}

// Blocks that give each of an H100's 132 multiprocessors about `warps` warps. The number is not
// asked of the device: sums over blocks must depend on the shape alone.
constexpr int64_t row_blocks(int64_t width, int warps) {
  return 132 * std::max<int64_t>(1, warps * 32 / row_threads(width));
}

}  // namespace sluice::cuda
