// Groups of rows that only the device knows: which tile of which group a block works on. A grid has
// row_tiles(rows, X) blocks for any offsets; those beyond the last group's last tile have nothing
// to do.
#pragma once

#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

// Every group but the first may begin a tile more than the rows alone would need.
inline int64_t max_row_tiles(int64_t rows, int64_t groups, int64_t tile_rows) {
  return rows / tile_rows + groups;
}

struct GroupTile {
  int group = -1;     // -1: none
  int64_t begin = 0;  // first row of the tile
  int64_t end = 0;    // of the group
};

// The group that a tile is of.
struct TiledGroup {
  int group = -1;              // -1: none
  int64_t begin = 0, end = 0;  // its rows
  int first_tile = 0;          // among those of all groups
};

// Tiles of kTileRows rows that the groups have. Called by whole warps.
template <int kTileRows>
__device__ inline int count_group_tiles(const int64_t* offsets, int groups) {
  int tiles = 0;
  for (int group = int(threadIdx.x) % kWarp; group < groups; group += kWarp)
    tiles += int((offsets[group + 1] - offsets[group] + kTileRows - 1) / kTileRows);
  return __reduce_add_sync(kFullWarp, tiles);
}

// The group of the `tile`-th tile of kTileRows rows, groups in order. Called by whole warps; the
// same on all lanes. Groups are counted 32 at a time.
template <int kTileRows>
__device__ inline TiledGroup find_tiled_group(const int64_t* offsets, int groups, int tile) {
  const int lane = threadIdx.x % kWarp;
  int before = 0;
  for (int first = 0; first < groups; first += kWarp) {
    const int group = first + lane;
    const int64_t begin = group < groups ? offsets[group] : 0;
    const int64_t end = group < groups ? offsets[group + 1] : 0;
    const int tiles = int((end - begin + kTileRows - 1) / kTileRows);
    int sum = tiles;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kFullWarp, sum, offset);
      if (lane >= offset) sum += other;
    }
    const unsigned holds = __ballot_sync(kFullWarp, before + sum > tile);
    if (holds != 0) {
      const int owner = __ffs(int(holds)) - 1;
      return {first + owner, __shfl_sync(kFullWarp, begin, owner),
              __shfl_sync(kFullWarp, end, owner),
              before + __shfl_sync(kFullWarp, sum - tiles, owner)};
    }
    before += __shfl_sync(kFullWarp, sum, kWarp - 1);
  }
  return {};
}
template <int kTileRows>
__device__ inline GroupTile find_group_tile(const int64_t* offsets, int groups, int tile) {
  const TiledGroup of = find_tiled_group<kTileRows>(offsets, groups, tile);
  return {of.group, of.begin + int64_t(tile - of.first_tile) * kTileRows, of.end};
}

// Tiles of a matrix in bands of `most` rows of tiles, column by column inside a band: blocks that
// run at the same time share rows and columns, which they find in the L2 cache.
struct BandedTile {
  int row, column;

  __device__ BandedTile(int64_t index, int rows, int columns, int most) {
    const int band = int(index / (int64_t(most) * columns));
    const int in_band = int(index - int64_t(band) * most * columns);
    const int height = min(most, rows - band * most);
    row = band * most + in_band % height;
    column = in_band / height;
  }
};

}  // namespace sluice::cuda
