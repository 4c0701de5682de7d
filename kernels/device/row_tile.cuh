// A row in the registers of a block's threads, between two passes over it: what norms are made of.
#pragma once

#include <type_traits>

#include "kernels/core/tensor.h"
#include "kernels/device/elements.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/row_shape.h"

namespace sluice::cuda {

constexpr int kMaxRowWarps = kMaxRowThreads / kWarp;

// Neighbouring elements that a thread takes at once, so that the widest type moves by 16 bytes.
template <class... T>
constexpr int kPieceWidth = std::min({16 / int(sizeof(T))...});

// The elements of a row that this thread owns: pieces of kWidth neighbours, one piece a thread,
// then the next round. They stay in their own type until used, which halves the registers of bf16.
template <class T, int kWidth>
class RowTile {
 public:
  static constexpr int kPieces = kRowValues / kWidth;

  // Columns from `width` on are zero.
  __device__ void load(const T* row, int width) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = column_of(piece);
      pieces_[piece] = column < width ? Piece::load(row + column) : Piece{};
    }
  }
  __device__ void store(T* row, int width) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = column_of(piece);
      if (column < width) pieces_[piece].store(row + column);
    }
  }

  // The same through shared memory, begun long before the row is needed: `slot` holds kRowValues
  // elements a thread. A thread copies and reads its own pieces alone, so no barrier is needed: a
  // row has arrived once its group of copies has (wait_copies).
  __device__ static void copy_to(T* slot, const T* row, int width) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = column_of(piece);
      const bool inside = column < width;
      copy_async(slot + column, row + (inside ? column : 0), inside);
    }
  }
  __device__ void load_from(const T* slot) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece)
      pieces_[piece] = Piece::load(slot + column_of(piece));
  }

  __device__ void fill(float value) {
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) set(i, value);
  }

  __device__ float operator[](int i) const { return pieces_[i / kWidth][i % kWidth]; }
  __device__ void set(int i, float value) { pieces_[i / kWidth].set(i % kWidth, value); }

 private:
  using Piece = Elements<T, kWidth>;
  static constexpr int kBytes = int(sizeof(Piece));
  // A piece, or zeros.
  __device__ static void copy_async(T* shared, const T* global, bool valid) {
    if constexpr (kBytes == 16) {
      copy_async_16(shared, global, valid);
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)),
                   "l"(global), "n"(kBytes), "r"(valid ? kBytes : 0)
                   : "memory");
    }
  }
  __device__ static int column_of(int piece) {
    return (piece * int(blockDim.x) + int(threadIdx.x)) * kWidth;
  }

  Piece pieces_[kPieces];
};

// Whether rows of all these tensors can be read in pieces of kWidth. Absent ones can.
template <int kWidth, class... View>
bool in_pieces(const View&... view) {
  const auto one = [](const ConstTensorView& rows) {
    const size_t piece = std::min<size_t>(16, kWidth * size_of(rows.dtype));
    return !rows || (reinterpret_cast<uintptr_t>(rows.data) % piece == 0 &&
                     rows.row_size() % kWidth == 0 && rows.row_stride % kWidth == 0);
  };
  return (one(view) && ...);
}

// Sums over a block's threads, on all of them. Calls take turns between two rooms, so that one
// barrier a call is enough.
template <int kCount>
struct RowSums {
  float of_warp[2][kMaxRowWarps][kCount];

  __device__ void operator()(int64_t turn, float (&values)[kCount]) {
#pragma unroll
    for (float& value : values) value = warp_sum(value);
    if (blockDim.x == kWarp) return;
    float(*const room)[kCount] = of_warp[turn & 1];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp][i] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (float& value : values) value = 0;
    for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] += room[warp][i];
    }
  }
};

}  // namespace sluice::cuda
