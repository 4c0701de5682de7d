// Matrix products of f32 tiles in registers, for operators' plain paths: any shape, any operand
// that a function can name element by element, full f32.
#pragma once

#include <cstdint>

namespace sluice::cuda {

constexpr int kTile = 64;       // rows and columns of a tile
constexpr int kTileDepth = 16;  // of a step
constexpr int kTileThreads = 256;
constexpr int kTileSide = 4;  // rows and columns of a thread

struct TileRoom {
  float a[kTileDepth][kTile + kTileSide];
  float b[kTileDepth][kTile + kTileSide];
};

// The tile's row and column of a thread's acc[0][0].
__device__ inline int tile_row() { return int(threadIdx.x) / 16 * kTileSide; }
__device__ inline int tile_column() { return int(threadIdx.x) % 16 * kTileSide; }

// Which index neighbouring threads load: the one along which the operand's elements lie together.
enum class Along { depth, side };

namespace detail {

template <Along kAlong, class Element>
__device__ void load_tile(int64_t k0, int64_t depth, const Element& element,
                          float (&to)[kTileDepth][kTile + kTileSide]) {
#pragma unroll
  for (int i = threadIdx.x; i < kTileDepth * kTile; i += kTileThreads) {
    const int k = kAlong == Along::depth ? i % kTileDepth : i / kTile;
    const int side = kAlong == Along::depth ? i / kTileDepth : i % kTile;
    to[k][side] = k0 + k < depth ? element(k0 + k, side) : 0.0f;
  }
}

}  // namespace detail

// acc[i][j] += sum over k < depth of a(k, tile_row() + i) * b(k, tile_column() + j), in the order
// of k. a and b are asked for all rows and columns of the tile: beyond the matrix they return 0.
// All of a block's kTileThreads threads must call. `room` may be used again after the call.
template <Along kAlongA, Along kAlongB, class A, class B>
__device__ void tile_product(int64_t depth, const A& a, const B& b, TileRoom& room,
                             float (&acc)[kTileSide][kTileSide]) {
  for (int64_t k0 = 0; k0 < depth; k0 += kTileDepth) {
    detail::load_tile<kAlongA>(k0, depth, a, room.a);
    detail::load_tile<kAlongB>(k0, depth, b, room.b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTileDepth; ++k) {
      const float4 row = *reinterpret_cast<const float4*>(&room.a[k][tile_row()]);
      const float4 column = *reinterpret_cast<const float4*>(&room.b[k][tile_column()]);
      const float rows[kTileSide] = {row.x, row.y, row.z, row.w};
      const float columns[kTileSide] = {column.x, column.y, column.z, column.w};
#pragma unroll
      for (int i = 0; i < kTileSide; ++i) {
#pragma unroll
        for (int j = 0; j < kTileSide; ++j) acc[i][j] += rows[i] * columns[j];
      }
    }
    __syncthreads();
  }
}

}  // namespace sluice::cuda
