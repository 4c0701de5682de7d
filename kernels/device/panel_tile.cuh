// Products of a warpgroup over tiles in shared memory: on wgmma where a kernel is built for it, and
// else the same on mma.sync, each warp for its own 16 rows. Tiles lie in panels of 64 columns, the
// widest that the hardware's swizzle knows.
#pragma once

#include "kernels/device/wgmma.cuh"

namespace sluice::cuda {

constexpr int kWarpgroup = 128;  // threads
constexpr int kWarpgroupRows = 64;

// This thread's warpgroup and its warp in it, numbers that are the same for all of the warp.
__device__ inline int warpgroup_index() {
  return __shfl_sync(0xffffffffu, int(threadIdx.x) / kWarpgroup, 0);
}
__device__ inline int warpgroup_warp() { return int(threadIdx.x) % kWarpgroup / 32; }

// The threads of one warpgroup meet.
__device__ inline void warpgroup_barrier(int group) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(1 + group) : "memory");
}

// `data` is aligned to 1024 bytes.
template <int kRows, int kColumns>
struct PanelTile {
  static constexpr int kPanel = kRows * 64;  // elements
  static constexpr uint32_t kPanelBytes = kPanel * sizeof(Bf16);
  Bf16* data;

  __device__ static int place(int row, int column) {
    return column / 64 * kPanel + SharedTile<64>::place(row, column % 64);
  }
  __device__ Bf16* piece(int row, int column) const { return data + place(row, column); }
  __device__ Bf16* element(int row, int column) const { return piece(row, column) + column % 8; }
  __device__ float2 pair(int row, int column) const {
    return unpack_bf16(*reinterpret_cast<const uint32_t*>(element(row, column)));
  }
};

// Rows of matrices on their way to such tiles, by kThreads threads, of which this one is `thread`.
// Each copies the same places of every tile, so addresses are found once.
template <int kRows, int kColumns, int kThreads>
struct PanelCopies {
  static constexpr int kPieces = kColumns / 8;
  static constexpr int kApart = kThreads / kPieces;  // rows between a thread's pieces
  static constexpr int kCount = kRows / kApart;
  static_assert(kApart % 8 == 0, "the permutation of pieces repeats after 8 rows");

  const Bf16* from;  // this thread's first piece
  int64_t apart;     // elements between its pieces
  int row;
  int place;  // of the first piece in the tile

  // `matrix` points at a tile's first row and column.
  __device__ PanelCopies(const Bf16* matrix, int64_t stride, int thread)
      : apart(kApart * stride), row(thread / kPieces) {
    const int column = thread % kPieces * 8;
    from = matrix + row * stride + column;
    place = PanelTile<kRows, kColumns>::place(row, column);
  }
  __device__ PanelCopies(const Bf16* matrix, int64_t stride)
      : PanelCopies(matrix, stride, int(threadIdx.x)) {}
  // The rows below `valid` of the tile that begins `ahead` elements on; the others become zeros.
  __device__ void copy(Bf16* tile, int64_t ahead, int valid) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = row + i * kApart < valid;
      copy_async_16(tile + place + i * kApart * 64, inside ? from + ahead + i * apart : from,
                    inside);
    }
  }
};

// What this thread copied into shared memory, but for the latest kPending groups, is there for
// everybody's products. All threads of the block call this.
template <int kPending>
__device__ void wait_tiles() {
  wait_copies<kPending>();
  if constexpr (kHasWgmma) fence_shared_for_wgmma();
  __syncthreads();
}

// Products come between begin_sums() and wait_sums(), each followed by no use of its registers.
template <int kTiles>
__device__ void begin_sums(Accumulator (&d)[kTiles]) {
  if constexpr (kHasWgmma) {
    pin(d);
    wgmma_fence();
  }
}
template <class = void>
__device__ void end_sums() {
  if constexpr (kHasWgmma) wgmma_commit();
}
// Until at most kPending of the latest groups run. Then `d` may be read.
template <int kPending, int kTiles>
__device__ void wait_sums(Accumulator (&d)[kTiles]) {
  if constexpr (kHasWgmma) {
    wgmma_wait<kPending>();
    pin(d);
  }
}

// d = a b^T: a is 64 rows, from `row` on, of one tile (this warpgroup's), b all rows of another.
template <int kRowsOfA, int kRowsOfB, int kDepth>
__device__ void multiply_rows(Accumulator (&d)[kRowsOfB / 8], const PanelTile<kRowsOfA, kDepth>& a,
                              int row, const PanelTile<kRowsOfB, kDepth>& b) {
  if constexpr (kHasWgmma) {
#pragma unroll
    for (int k = 0; k < kDepth; k += kMmaK) {
      wgmma<false>(d, rows_k_contiguous(a.data, k / 64 * a.kPanel + row * 64 + k % 64),
                   rows_k_contiguous(b.data, k / 64 * b.kPanel + k % 64), k > 0);
    }
  } else {
#pragma unroll
    for (Accumulator& tile : d) tile = Accumulator{};
#pragma unroll
    for (int k = 0; k < kDepth; k += kMmaK) {
      const FragmentA rows = load_a(a, row + warpgroup_warp() * kMmaM, k);
#pragma unroll
      for (int n = 0; n < kRowsOfB; n += 16) {
        const FragmentPairB pair = load_b(b, n, k);
        mma(d[n / 8], rows, pair.halves[0]);
        mma(d[n / 8 + 1], rows, pair.halves[1]);
      }
    }
  }
}

// d += a b: b is all rows of a tile.
template <int kDepth, int kColumns>
__device__ void add_product(Accumulator (&d)[kColumns / 8], FragmentA (&a)[kDepth / kMmaK],
                            const PanelTile<kDepth, kColumns>& b) {
#pragma unroll
  for (int k = 0; k < kDepth; k += kMmaK) {
    if constexpr (kHasWgmma) {
      wgmma<true>(d, a[k / kMmaK], rows_of_k(b.data, b.kPanelBytes, k * 64), true);
    } else {
#pragma unroll
      for (int n = 0; n < kColumns; n += 16) {
        const FragmentPairB pair = load_b_transposed(b, n, k);
        mma(d[n / 8], a[k / kMmaK], pair.halves[0]);
        mma(d[n / 8 + 1], a[k / kMmaK], pair.halves[1]);
      }
    }
  }
}

// Of words that the four lanes of a row hold of four neighbouring 16 x 8 tiles (a lane has a word
// of each), all four of the tile whose number is the lane's among the four.
__device__ inline uint4 gather_quad(uint32_t (&words)[4]) {
  const int lane = threadIdx.x;
  const auto exchange = [&](uint32_t& low, uint32_t& high, int other) {
    const bool upper = lane & other;
    const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, other);
    low = upper ? got : low;
    high = upper ? high : got;
  };
  exchange(words[0], words[1], 1);
  exchange(words[2], words[3], 1);
  exchange(words[0], words[2], 2);
  exchange(words[1], words[3], 2);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace sluice::cuda
