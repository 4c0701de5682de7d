// A stable sort of tokens by id: radix sort, least digit first, one pass of three small kernels a
// digit. Stable, so the same tokens give the same order, and integer counts need no fixed order.
#pragma once

#include "kernels/device/reduce.cuh"
#include "kernels/embedding/embedding_cuda.h"

namespace sluice::cuda {

constexpr int kSortBits = 9;
static_assert(int64_t{1} << kSortBits == kSortBuckets);
constexpr int kSortThreads = int(kSortTile);  // a thread owns one token
constexpr int kSortWarps = kSortThreads / kWarp;
constexpr int kScanItems = 8;

// The tokens as they are given. Those outside [0, V) sort as V.
struct TokenRows {
  const int32_t* first;
  int64_t stride, length;
  int32_t V;

  __device__ int32_t operator()(int64_t index) const {
    const int32_t id = first[index / length * stride + index % length];
    return id >= 0 && id < V ? id : V;
  }
};

struct SortPass {
  TokenRows tokens;          // read by the first pass
  const int32_t* ids;        // null in the first pass
  const int32_t* positions;  // null in the first pass
  int32_t* ids_out;
  int32_t* positions_out;
  int32_t* counts;  // (kSortBuckets, tiles); from the scan on, the first place of each
  int64_t n, tiles;
  int shift;

  __device__ int32_t id_at(int64_t index) const {
    return ids == nullptr ? tokens(index) : ids[index];
  }
  __device__ int digit_of(int32_t id) const { return id >> shift & int(kSortBuckets - 1); }
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) count_digits_kernel(SortPass pass) {
  __shared__ int counts[kSortBuckets];
  for (int digit = threadIdx.x; digit < kSortBuckets; digit += kThreads) counts[digit] = 0;
  __syncthreads();
  const int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (index < pass.n) atomicAdd(&counts[pass.digit_of(pass.id_at(index))], 1);
  __syncthreads();
  for (int digit = threadIdx.x; digit < kSortBuckets; digit += kThreads)
    pass.counts[digit * pass.tiles + blockIdx.x] = counts[digit];
}

// In place: each count becomes the sum of those before it. One block.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) scan_counts_kernel(int32_t* counts, int64_t total) {
  __shared__ int of_warp[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int before = 0;  // all counts of earlier rounds
  for (int64_t round = 0; round < total; round += kThreads * kScanItems) {
    const int64_t first = round + threadIdx.x * kScanItems;
    int items[kScanItems], mine = 0;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      items[i] = first + i < total ? counts[first + i] : 0;
      mine += items[i];
    }
    int up_to = mine;  // over the warp's lanes up to this one
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kFullWarp, up_to, offset);
      if (lane >= offset) up_to += other;
    }
    if (lane == kWarp - 1) of_warp[warp] = up_to;
    __syncthreads();
    int place = before + up_to - mine;
    for (int other = 0; other < kThreads / kWarp; ++other) {
      if (other < warp) place += of_warp[other];
      before += of_warp[other];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      if (first + i < total) counts[first + i] = place;
      place += items[i];
    }
  }
}

// A token's place: that of its digit in this tile, and after the tile's tokens of that digit before
// it: those of earlier warps, and of earlier lanes.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) scatter_kernel(SortPass pass) {
  __shared__ uint16_t of_warp[kSortWarps][kSortBuckets];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int digit = lane; digit < kSortBuckets; digit += kWarp) of_warp[warp][digit] = 0;
  __syncwarp();
  const int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const bool here = index < pass.n;
  const int32_t id = here ? pass.id_at(index) : 0;
  const int digit = pass.digit_of(id);
  const unsigned same = __match_any_sync(kFullWarp, here ? digit : -1);
  const int rank = __popc(same & ((1u << lane) - 1));
  if (here && rank == 0) of_warp[warp][digit] = uint16_t(__popc(same));
  __syncthreads();
  for (int column = threadIdx.x; column < kSortBuckets; column += kThreads) {
    int before = 0;
    for (int other = 0; other < kSortWarps; ++other) {
      const int count = of_warp[other][column];
      of_warp[other][column] = uint16_t(before);
      before += count;
    }
  }
  __syncthreads();
  if (!here) return;
  const int64_t place = pass.counts[digit * pass.tiles + blockIdx.x] + of_warp[warp][digit] + rank;
  pass.ids_out[place] = id;
  pass.positions_out[place] = pass.positions == nullptr ? int32_t(index) : pass.positions[index];
}

struct SortedTokens {
  const int32_t* ids;
  const int32_t* positions;
  int64_t n;
};

inline SortedTokens sort_tokens(const Context& ctx, const TokenRows& tokens, int64_t n,
                                const EmbeddingWork& work) {
  const int64_t tiles = ceil_div(n, kSortTile);
  int32_t* const ids = work.ids.as<int32_t>();
  int32_t* const positions = work.positions.as<int32_t>();
  int64_t from = 0;  // of the two halves
  for (int shift = 0; shift == 0 || int64_t{tokens.V} >> shift != 0; shift += kSortBits) {
    const int64_t to = n - from;
    const SortPass pass = {.tokens = tokens,
                           .ids = shift == 0 ? nullptr : ids + from,
                           .positions = shift == 0 ? nullptr : positions + from,
                           .ids_out = ids + to,
                           .positions_out = positions + to,
                           .counts = work.counts.as<int32_t>(),
                           .n = n,
                           .tiles = tiles,
                           .shift = shift};
    const Grid grid = {.blocks = unsigned(tiles), .threads = kSortThreads};
    launch(ctx, "embedding_backward", grid, count_digits_kernel<kSortThreads>, pass);
    launch(ctx, "embedding_backward", {.blocks = 1, .threads = kSortThreads},
           scan_counts_kernel<kSortThreads>, pass.counts, kSortBuckets * tiles);
    launch(ctx, "embedding_backward", grid, scatter_kernel<kSortThreads>, pass);
    from = to;
  }
  return {.ids = ids + from, .positions = positions + from, .n = n};
}

}  // namespace sluice::cuda
