// Tensor cores and what feeds them, for sm_80 and up: products of 16 x 8 x 16 bf16 tiles added up
// in f32 (mma.sync), tiles from shared memory to registers (ldmatrix), 16 bytes at a time from
// global to shared memory behind the threads' backs (cp.async), and a layout of shared tiles
// without bank conflicts.
//
// All 32 lanes of a warp run these together. A warp's product D (16 x 8) += A (16 x 16) B (16 x 8):
//
//   A is (M, K), B is (K, N), D is (M, N); lane = 4 * group + pair, group 0..7, pair 0..3
//   D: a lane holds rows group and group + 8, columns 2 pair and 2 pair + 1 (Accumulator)
//
// Operands come from shared tiles whose rows are either M or N ("k contiguous") or K. load_a and
// load_b read the former, load_a_transposed and load_b_transposed the latter:
//
//   D = X Y^T  with X: (M, K) and Y: (N, K) in shared memory: load_a(X), load_b(Y)
//   D = X Y    with Y: (K, N):                                load_a(X), load_b_transposed(Y)
//   D = X^T Y  with X: (K, M) and Y: (K, N):                  load_a_transposed(X), the same
#pragma once

#include <cstdint>

#include "kernels/device/numeric.cuh"

namespace sluice::cuda {

// --- Tiles in registers --------------------------------------------------------------------------

constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 16;

// What one lane holds of a 16 x 8 tile of D, in f32.
struct Accumulator {
  float values[4] = {0, 0, 0, 0};

  // The place of values[i] in the tile.
  __device__ static int row(int i) { return int(threadIdx.x % 32) / 4 + i / 2 * 8; }
  __device__ static int column(int i) { return int(threadIdx.x % 4) * 2 + i % 2; }
  // Values 0 and 1 lie in row(0), values 2 and 3 in row(2); the lanes lane ^ 1, lane ^ 2 hold the
  // rest of the same rows.
};

// What one lane holds of a 16 x 16 tile of A: a word is two neighbours along K. Word i: row
// group + i % 2 * 8, columns 2 pair + i / 2 * 8 and the next.
struct FragmentA {
  uint32_t words[4];
};
// Of a 16 x 8 tile of B. Word i: rows 2 pair + i * 8 and the next, column group.
struct FragmentB {
  uint32_t words[2];
};

// `low` at the lower address.
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float2 unpack_bf16(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}

// Two neighbouring 16 x 8 tiles of one product as the A of the next, rounded to bf16.
__device__ inline FragmentA fragment_a(const Accumulator& left, const Accumulator& right) {
  return {{pack_bf16(left.values[0], left.values[1]), pack_bf16(left.values[2], left.values[3]),
           pack_bf16(right.values[0], right.values[1]),
           pack_bf16(right.values[2], right.values[3])}};
}

// The transposed tile.
__device__ inline FragmentA transpose(const FragmentA& a) {
  FragmentA out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n"
                 : "=r"(out.words[i])
                 : "r"(a.words[i % 2 * 2 + i / 2]));
  }
  return out;
}

// d += a b
__device__ inline void mma(Accumulator& d, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d.values[0]), "+f"(d.values[1]), "+f"(d.values[2]), "+f"(d.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
        "r"(b.words[1]));
}

// --- Tiles in shared memory ----------------------------------------------------------------------

// Rows of kColumns bf16, without padding. Their 16-byte pieces are permuted so that the eight rows
// of one column that ldmatrix reads, and the pieces of one row that cp.async writes, lie in
// different banks. `data` is aligned to 128 bytes; the tile takes rows * kColumns elements.
template <int kColumns>
struct SharedTile {
  static constexpr int kPieces = kColumns / 8;
  static_assert(kPieces % 8 == 0 || kPieces == 4 || kPieces == 2,
                "the width is a multiple of 64, or 32 or 16");

  Bf16* data;

  // `column` is a multiple of 8: the piece's first element, 16 bytes aligned.
  __device__ static int place(int row, int column) {
    constexpr int kRowsOfBanks = kPieces < 8 ? 8 / kPieces : 1;  // rows in all 32 banks
    constexpr int kMask = (kPieces < 8 ? kPieces : 8) - 1;
    return row * kColumns + ((column / 8) ^ (row / kRowsOfBanks & kMask)) * 8;
  }
  __device__ Bf16* piece(int row, int column) const { return data + place(row, column); }
  __device__ Bf16* element(int row, int column) const { return piece(row, column) + column % 8; }
  // The tile from a row on, a multiple of 8. Loads in a loop over rows that go through this have
  // most of their addresses before the loop.
  __device__ SharedTile from_row(int row) const { return {data + row * kColumns}; }
};

__device__ inline uint32_t shared_address(const void* shared) {
  return uint32_t(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of bf16; lanes 8 i .. 8 i + 7 point at the rows of matrix i, and word i of
// every lane is from it: row lane / 4, columns 2 (lane % 4) and the next.
__device__ inline void ldmatrix_x4(uint32_t (&words)[4], const Bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same with every matrix transposed.
__device__ inline void ldmatrix_x4_transposed(uint32_t (&words)[4], const Bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// The 16 x 16 tile of A at (m, k) of a tile of rows m.
template <class Tile>
__device__ FragmentA load_a(const Tile& tile, int m, int k) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  ldmatrix_x4(a.words, tile.piece(m + lane % 16, k + lane / 16 * 8));
  return a;
}
// The inverse of load_a: 16 bytes at a time where the hardware has it.
template <class Tile>
__device__ void store_a(const Tile& tile, int m, int k, const FragmentA& a) {
  const int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
                   shared_address(tile.piece(m + lane % 16, k + lane / 16 * 8))),
               "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3])
               : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Bf16* const piece = tile.piece(m + lane / 4 + i % 2 * 8, k + i / 2 * 8);
    *reinterpret_cast<uint32_t*>(piece + lane % 4 * 2) = a.words[i];
  }
#endif
}
// As load_a, of a tile of rows k.
template <class Tile>
__device__ FragmentA load_a_transposed(const Tile& tile, int m, int k) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  ldmatrix_x4_transposed(a.words, tile.piece(k + lane % 8 + lane / 16 * 8, m + lane / 8 % 2 * 8));
  return a;
}

// Two neighbours along N, which one ldmatrix loads: a 16 x 16 tile of B.
struct FragmentPairB {
  FragmentB halves[2];  // columns n .. n + 7, n + 8 .. n + 15
};

// The 16 x 16 tile of B at (k, n) of a tile of rows n.
template <class Tile>
__device__ FragmentPairB load_b(const Tile& tile, int n, int k) {
  const int lane = threadIdx.x % 32;
  uint32_t words[4];
  ldmatrix_x4(words, tile.piece(n + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
  return {{{{words[0], words[1]}}, {{words[2], words[3]}}}};
}
// The same of a tile of rows k.
template <class Tile>
__device__ FragmentPairB load_b_transposed(const Tile& tile, int n, int k) {
  const int lane = threadIdx.x % 32;
  uint32_t words[4];
  ldmatrix_x4_transposed(words, tile.piece(k + lane % 16, n + lane / 16 * 8));
  return {{{{words[0], words[1]}}, {{words[2], words[3]}}}};
}

// --- Copies from global to shared memory ---------------------------------------------------------

// 16 bytes, both sides aligned to 16; zeros if not `valid`, and then `global` is not read (it must
// still be some address of device memory). Arrives by wait_copies.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The same of 4 bytes, both sides aligned to 4.
__device__ inline void copy_async_4(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}
// The copies begun so far become a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most kPending of this thread's latest groups are on their way. Other threads' copies
// are seen after a barrier that follows.
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Rows [first, first + kRows) of a matrix, columns [0, kColumns), into a shared tile; rows from
// `end` on become zeros. `matrix` and row_stride * sizeof(Bf16) are multiples of 16 bytes. All
// kThreads threads of the block take part; follow with commit_copies().
template <int kRows, int kColumns, int kThreads>
__device__ void copy_tile_async(const SharedTile<kColumns>& tile, const Bf16* matrix,
                                int64_t row_stride, int64_t first, int64_t end) {
  constexpr int kPieces = SharedTile<kColumns>::kPieces, kStep = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0, "a thread's pieces lie in one column");
  const int column = threadIdx.x % kPieces * 8, first_row = threadIdx.x / kPieces;
  const int rows = int(min(int64_t(kRows), end - first));
  const Bf16* from = matrix + (first + first_row) * row_stride + column;
#pragma unroll
  for (int i = 0; i < (kRows + kStep - 1) / kStep; ++i) {
    const int row = first_row + i * kStep;
    if (kRows % kStep != 0 && row >= kRows) break;
    copy_async_16(tile.piece(row, column), row < rows ? from : matrix, row < rows);
    from += kStep * row_stride;
  }
}

}  // namespace sluice::cuda
