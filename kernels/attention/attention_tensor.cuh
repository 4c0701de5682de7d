// What the tensor-core kernels of attention share: tiles of one head in shared memory, the two
// products of attention on wgmma or mma.sync, and the order of blocks.
//
// A block is two warpgroups of 64 rows; a warp owns 16 rows of every product, a thread two of them:
// group = lane / 4 and group + 8, of each 8 columns 2 (lane % 4) and the next. So probabilities
// and their gradients go from one product into the next in registers, as its A.
#pragma once

#include <cmath>

#include "kernels/attention/attention_device.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/wgmma.cuh"

namespace sluice::cuda {

constexpr int kTensorThreads = 256;
constexpr int kWarpgroups = kTensorThreads / 128;
constexpr int kWarpRows = 16;
constexpr int kGroupRows = 64;
constexpr int kBlockRows = kWarpgroups * kGroupRows;

__device__ inline int warp_row() { return threadIdx.x / kWarp * kWarpRows; }  // of the block's
__device__ inline int thread_row(int i) { return warp_row() + Accumulator::row(2 * i); }

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// kRows rows of one head in shared memory, aligned to 1024 bytes: panels of 64 columns.
template <int kRows, int kHd>
struct HeadTile {
  static constexpr int kElements = kRows * kHd;
  static constexpr int kPieces = kHd / 8;  // of 16 bytes, in a row
  Bf16* data;

  __device__ SharedTile<64> panel(int index) const { return {data + index * kRows * 64}; }
  __device__ Bf16* piece(int row, int column) const {
    return panel(column / 64).piece(row, column % 64);
  }

  // Rows [first, first + kRows) of a head of hd columns; zeros beyond `end` and hd.
  __device__ void copy_async(const Bf16* head, int64_t stride, int first, int end, int hd) const {
    constexpr int kRowsAtATime = kTensorThreads / kPieces;
    static_assert(kRowsAtATime % 8 == 0, "a thread's pieces are permuted alike");
    const int row = threadIdx.x / kPieces, column = threadIdx.x % kPieces * 8;
    const Bf16* const from = head + (first + row) * stride + column;
    Bf16* const to = piece(row, column);
    const int rows = column < hd ? end - first - row : 0;
#pragma unroll
    for (int n = 0; n < kRows; n += kRowsAtATime)
      copy_async_16(to + n * 64, n < rows ? from + n * stride : head, n < rows);
  }
};

// --- Products. In between begin_products() and wait_products() they may run beside whatever does
// not touch their registers and tiles; mma.sync is done at once. The compiler moves a wait up over
// arithmetic, which then runs beside nothing: what is to come first stands in an `if`, on a
// condition of the launch that always holds.

template <int kTiles, int kFragments>
__device__ void begin_products(Accumulator (&d)[kTiles], FragmentA (&a)[kFragments]) {
  if constexpr (kHasWgmma) {
    pin(d);
    pin(a);
    wgmma_fence();
  }
}
template <int kTiles>
__device__ void begin_products(Accumulator (&d)[kTiles]) {
  if constexpr (kHasWgmma) {
    pin(d);
    wgmma_fence();
  }
}
template <class = void>
__device__ void end_products() {
  if constexpr (kHasWgmma) wgmma_commit();
}
// Until at most kPending of the latest groups run. Then `d` may be read.
template <int kPending, int kTiles>
__device__ void wait_products(Accumulator (&d)[kTiles]) {
  if constexpr (kHasWgmma) {
    wgmma_wait<kPending>();
    pin(d);
  }
}
// What this thread copied into shared memory is there for everybody's products. All threads of the
// block call this.
template <int kPendingCopies>
__device__ void wait_tiles() {
  wait_copies<kPendingCopies>();
  if constexpr (kHasWgmma) fence_shared_for_wgmma();
  __syncthreads();
}

// What one warpgroup of the block has copied and the other waits for, told before it is needed: so
// that neither stands still while the other is in its softmax. Barrier 0 is __syncthreads(); one
// here is used again only after both have passed it.
struct Warpgroups {
  int mine = __shfl_sync(kFullWarp, threadIdx.x / 128, 0);

  // All but kPending of this thread's groups of copies are there; the rest is for `tile` or later.
  template <int kPending>
  __device__ void copied(int tile) const {
    wait_copies<kPending>();
    if constexpr (kHasWgmma) fence_shared_for_wgmma();
    asm volatile("bar.arrive %0, 256;\n" ::"r"(1 + 2 * mine + tile % 2) : "memory");
  }
  __device__ void wait_for_other(int tile) const {
    asm volatile("bar.sync %0, 256;\n" ::"r"(1 + 2 * (1 - mine) + tile % 2) : "memory");
  }
};

template <int kHd, int kRows>
__device__ void load_rows(FragmentA (&a)[kHd / kMmaK], const HeadTile<kRows, kHd>& tile) {
#pragma unroll
  for (int k = 0; k < kHd / kMmaK; ++k) a[k] = load_a(tile, warp_row(), k * kMmaK);
}

// d = a b^T, b the kRows rows of a tile.
template <int kHd, int kRows>
__device__ void dot_rows(Accumulator (&d)[kRows / 8], FragmentA (&a)[kHd / kMmaK],
                         const HeadTile<kRows, kHd>& b) {
  if constexpr (kHasWgmma) {
#pragma unroll
    for (int k = 0; k < kHd; k += kMmaK) {
      wgmma<false>(d, a[k / kMmaK], rows_k_contiguous(b.panel(k / 64).data + k % 64), k > 0);
    }
  } else {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) d[n] = Accumulator{};
#pragma unroll
    for (int k = 0; k < kHd; k += kMmaK) {
#pragma unroll
      for (int n = 0; n < kRows; n += 16) {
        const FragmentPairB pair = load_b(b, n, k);
        mma(d[n / 8], a[k / kMmaK], pair.halves[0]);
        mma(d[n / 8 + 1], a[k / kMmaK], pair.halves[1]);
      }
    }
  }
}

// The same with a this block's rows of a tile: for kernels without registers to keep them.
template <int kHd, int kRows>
__device__ void dot_rows(Accumulator (&d)[kRows / 8], const HeadTile<kBlockRows, kHd>& a,
                         const HeadTile<kRows, kHd>& b) {
  if constexpr (kHasWgmma) {
    const int row = __shfl_sync(kFullWarp, threadIdx.x / 128, 0) * kGroupRows;  // a uniform one
#pragma unroll
    for (int k = 0; k < kHd; k += kMmaK) {
      wgmma<false>(d, rows_k_contiguous(a.panel(k / 64).data + row * 64 + k % 64),
                   rows_k_contiguous(b.panel(k / 64).data + k % 64), k > 0);
    }
  } else {
    FragmentA rows[kHd / kMmaK];
    load_rows(rows, a);
    dot_rows(d, rows, b);
  }
}

// d += a b, b the kRows rows of a tile.
template <int kHd, int kRows>
__device__ void add_rows(Accumulator (&d)[kHd / 8], FragmentA (&a)[kRows / kMmaK],
                         const HeadTile<kRows, kHd>& b) {
#pragma unroll
  for (int k = 0; k < kRows; k += kMmaK) {
    if constexpr (kHasWgmma) {
      constexpr uint32_t kPanelBytes = kRows * 64 * sizeof(Bf16);
      wgmma<true>(d, a[k / kMmaK], rows_of_k(b.data + k * 64, kPanelBytes), true);
    } else {
#pragma unroll
      for (int n = 0; n < kHd; n += 16) {
        const FragmentPairB pair = load_b_transposed(b, n, k);
        mma(d[n / 8], a[k / kMmaK], pair.halves[0]);
        mma(d[n / 8 + 1], a[k / kMmaK], pair.halves[1]);
      }
    }
  }
}

template <int kTiles>
__device__ void to_fragments(FragmentA (&a)[kTiles / 2], const Accumulator (&d)[kTiles]) {
#pragma unroll
  for (int n = 0; n < kTiles / 2; ++n) a[n] = fragment_a(d[2 * n], d[2 * n + 1]);
}

// Writes a warp's 16 rows of d, times `scale`, to rows first.. of a head, through `staging`: global
// memory is written 16 bytes a thread.
template <int kHd>
__device__ void store_rows(const Accumulator (&d)[kHd / 8], const float (&scale)[2],
                           const HeadTile<kBlockRows, kHd>& staging, Bf16* head, int64_t stride,
                           int first, int end, int hd) {
#pragma unroll
  for (int n = 0; n < kHd / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Bf16* const to = staging.piece(thread_row(i), n * 8) + Accumulator::column(0);
      *reinterpret_cast<uint32_t*>(to) =
          pack_bf16(scale[i] * d[n].values[2 * i], scale[i] * d[n].values[2 * i + 1]);
    }
  }
  __syncwarp();
  constexpr int kPieces = HeadTile<kBlockRows, kHd>::kPieces;
#pragma unroll
  for (int n = 0; n < kWarpRows * kPieces / kWarp; ++n) {
    const int i = n * kWarp + threadIdx.x % kWarp;
    const int row = warp_row() + i / kPieces, column = i % kPieces * 8;
    if (first + row < end && column < hd) {
      Pack<Bf16>::load(staging.piece(row, column)).store(head + (first + row) * stride + column);
    }
  }
}

// The keys that a thread's two queries see, and those that all queries of the block see.
struct RowBounds {
  int begin[2], end[2];
  int all_begin, all_end;

  __device__ RowBounds(const AttentionSizes& sizes, const AttentionMask& mask, int b, int first) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = min(first + thread_row(i), sizes.T - 1);
      begin[i] = mask.begin(b, t), end[i] = mask.end(t);
    }
    all_begin = mask.begin(b, min(first + kBlockRows, sizes.T) - 1);
    all_end = mask.end(first);
  }
  // Scores of pairs that do not see each other become -infinity.
  template <int kTiles>
  __device__ void hide(Accumulator (&scores)[kTiles], int key) const {
    if (key >= all_begin && key + kTiles * 8 <= all_end) return;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int s = key + n * 8 + Accumulator::column(j);
        const bool sees = s >= begin[j / 2] && s < end[j / 2];
        scores[n].values[j] = sees ? scores[n].values[j] : -INFINITY;
      }
    }
  }
};

// --- Which tile of which head a block takes. Blocks start in the order of their index: the ones
// with most work first, but so few heads at a time that what they all read stays in the L2.
struct BlockOrder {
  int tiles = 0, heads = 0;  // heads of all rows of the batch
  int heads_at_a_time = 0;
  bool last_first = false;

  // Each of `heads` heads reads `rows` rows of two tensors; `sharing` neighbours read the same.
  BlockOrder(int tiles, int heads, int64_t rows, int hd, int sharing, bool last_first)
      : tiles(tiles), heads(heads), last_first(last_first) {
    constexpr int64_t kL2Bytes = int64_t{16} << 20;
    const int64_t head_bytes = rows * hd * 2 * int64_t(sizeof(Bf16));
    const int64_t fitting = std::max<int64_t>(1, kL2Bytes / head_bytes) * sharing;
    heads_at_a_time = int(std::min<int64_t>(heads, fitting));
  }
  unsigned blocks() const { return unsigned(tiles) * unsigned(heads); }

  struct Place {
    int head, tile;
  };
  __device__ Place place() const {
    const int section = blockIdx.x / (heads_at_a_time * tiles);
    const int within = blockIdx.x - section * heads_at_a_time * tiles;
    const int first = section * heads_at_a_time;
    const int count = min(heads_at_a_time, heads - first);
    const int tile = within / count;
    return {first + within % count, last_first ? tiles - 1 - tile : tile};
  }
};

}  // namespace sluice::cuda
