// Rows of x, dx and B on their way to shared tiles. Each of a block's threads copies the same place
// of every tile, so addresses are found once and then only stepped: a tile's worth of work is too
// short to find them again.
#pragma once

#include "kernels/device/mma.cuh"

namespace sluice::cuda {

template <int kRows, int kColumns, int kThreads>
struct TileCopies {
  static constexpr int kPieces = SharedTile<kColumns>::kPieces;
  static constexpr int kApart = kThreads / kPieces;  // rows between a thread's pieces
  static constexpr int kCount = kRows / kApart;
  static_assert(kApart % 8 == 0, "the permutation of pieces repeats after 8 rows");

  const Bf16* from;  // the first piece
  int64_t apart;     // elements between pieces
  int row;
  int place;  // of the first piece in the tile

  // `matrix` points at the tile's first row and column.
  __device__ TileCopies(const Bf16* matrix, int64_t stride)
      : apart(kApart * stride), row(int(threadIdx.x) / kPieces) {
    const int column = int(threadIdx.x) % kPieces * 8;
    from = matrix + row * stride + column;
    place = SharedTile<kColumns>::place(row, column);
  }
  // The tile's rows below `valid`; the others become zeros.
  __device__ void copy(Bf16* tile, int valid) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = row + i * kApart < valid;
      copy_async_16(tile + place + i * kApart * kColumns, inside ? from + i * apart : from, inside);
    }
  }
};

}  // namespace sluice::cuda
