// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
//
// A block owns 128 queries of one head and walks the tiles of keys that they see, four tiles of
// keys and values in flight. The floor is 4 hd FLOPs for a pair of query and key; next to the
// tensor cores comes the exponential, a quarter of their time at hd 128. So the products of tile j
// - 1 with its values run while tile j goes through the softmax, and those of tile j with its keys
// begin before. Shared memory: 128 queries + 4 x (keys + values) = 160 KB at hd 128.
#include <cmath>

#include "kernels/attention/attention_tensor.cuh"
#include "kernels/attention/attention_tensor_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kStages = 4;

template <int kHd>
struct ForwardTiles {
  static constexpr int kKeys = kHd == 64 ? 128 : 64;  // of a tile: 16 KB
  using Queries = HeadTile<kBlockRows, kHd>;
  using Keys = HeadTile<kKeys, kHd>;
  static constexpr int kBytes =
      (Queries::kElements + 2 * kStages * Keys::kElements) * int(sizeof(Bf16));
  Bf16* memory;

  __device__ Queries queries() const { return {memory}; }
  __device__ Keys keys(int tile) const {
    return {memory + Queries::kElements + tile % kStages * 2 * Keys::kElements};
  }
  __device__ Keys values(int tile) const { return {keys(tile).data + Keys::kElements}; }
};

// The online softmax of a thread's two rows, over the columns that it holds.
template <int kKeys>
struct TileSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};  // unscaled, of the whole row
  float sum[2] = {0, 0};                      // of this thread's columns
  float rescale[2] = {0, 0};                  // what earlier sums must be multiplied by

  // scores become probabilities over the largest so far.
  __device__ void fold(Accumulator (&scores)[kKeys / 8], float scale_log2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float highest = largest[i];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        highest = fmaxf(highest, fmaxf(scores[n].values[2 * i], scores[n].values[2 * i + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
      const float base = highest == -INFINITY ? 0.0f : highest * scale_log2;
      rescale[i] = exp2_fast(largest[i] * scale_log2 - base);
      largest[i] = highest;
      float tile_sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 2 * i; j < 2 * i + 2; ++j) {
          scores[n].values[j] = exp2_fast(scores[n].values[j] * scale_log2 - base);
          tile_sum += scores[n].values[j];
        }
      }
      sum[i] = sum[i] * rescale[i] + tile_sum;
    }
  }
  __device__ float whole_sum(int i) const {
    const float half = sum[i] + __shfl_xor_sync(kFullWarp, sum[i], 1);
    return half + __shfl_xor_sync(kFullWarp, half, 2);
  }
};

// The keys that a thread's two rows see, and where all rows of the block see all.
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
  template <int kTiles>
  __device__ void hide(Accumulator (&scores)[kTiles], int key) const {
    if (key >= all_begin && key + kTiles * 8 <= all_end) return;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int s = key + n * 8 + Accumulator::column(j);
        if (s < begin[j / 2] || s >= end[j / 2]) scores[n].values[j] = -INFINITY;
      }
    }
  }
};

template <int kTiles>
__device__ void scale_rows(Accumulator (&d)[kTiles], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) d[n].values[j] *= factor[j / 2];
  }
}

template <int kHd>
__global__ void __launch_bounds__(kTensorThreads, 1)
    attention_forward_tensor_kernel(ForwardParams<Bf16> p, BlockOrder order) {
  using Tiles = ForwardTiles<kHd>;
  constexpr int kKeys = Tiles::kKeys;
  extern __shared__ __align__(1024) Bf16 memory[];
  const Tiles tiles{memory};
  const auto [B, T, S, Hq, Hkv, hd] = p.sizes;
  const auto [all_heads, query_tile] = order.place();
  const int b = all_heads / Hq, h = all_heads % Hq, first = query_tile * kBlockRows;
  const int64_t kv_column = int64_t(h / (Hq / Hkv)) * hd;
  const Bf16* const q = p.q.head(b, int64_t(h) * hd);
  const Bf16* const k = p.k.head(b, kv_column);
  const Bf16* const v = p.v.head(b, kv_column);
  const int keys_begin = p.mask.begin(b, first);
  const int keys_end = p.mask.end(min(first + kBlockRows, T) - 1);
  const int count = (keys_end - keys_begin + kKeys - 1) / kKeys;
  const auto copy_keys = [&](int tile) {
    if (tile < count) {
      const int key = keys_begin + tile * kKeys;
      tiles.keys(tile).copy_async(k, p.k.stride, key, keys_end, hd);
      tiles.values(tile).copy_async(v, p.v.stride, key, keys_end, hd);
    }
    commit_copies();
  };
  tiles.queries().copy_async(q, p.q.stride, first, T, hd);
  copy_keys(0);
  copy_keys(1);

  const RowBounds bounds(p.sizes, p.mask, b, first);
  const float scale_log2 = p.scale * kLog2E;
  TileSoftmax<kKeys> softmax;
  FragmentA rows[kHd / kMmaK], weights[kKeys / kMmaK];
  Accumulator y[kHd / 8], scores[kKeys / 8];
  wait_tiles<1>();
  load_rows(rows, tiles.queries());
  if (count > 0) {
    copy_keys(2);
    begin_products(scores, rows);
    dot_rows(scores, rows, tiles.keys(0));
    end_products();
    wait_products<0>(scores);
    bounds.hide(scores, keys_begin);
    softmax.fold(scores, scale_log2);
    to_fragments(weights, scores);
  }
  for (int tile = 1; tile < count; ++tile) {
    wait_tiles<1>();
    copy_keys(tile + 2);
    begin_products(scores, rows);
    dot_rows(scores, rows, tiles.keys(tile));
    end_products();
    begin_products(y, weights);
    add_rows(y, weights, tiles.values(tile - 1));
    end_products();
    wait_products<1>(scores);
    bounds.hide(scores, keys_begin + tile * kKeys);
    if (p.scale > 0) softmax.fold(scores, scale_log2);  // always: so the wait stays behind it
    wait_products<0>(y);
    scale_rows(y, softmax.rescale);
    to_fragments(weights, scores);
  }
  if (count > 0) {
    begin_products(y, weights);
    add_rows(y, weights, tiles.values(count - 1));
    end_products();
    wait_products<0>(y);
  }

  wait_tiles<0>();
  float inverse[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = softmax.whole_sum(i);
    inverse[i] = sum > 0 ? 1.0f / sum : 0.0f;
    const int t = first + thread_row(i);
    if (p.lse == nullptr || t >= T || threadIdx.x % 4 != 0) continue;
    p.lse[(int64_t(b) * T + t) * p.lse_stride + h] =
        sum > 0 ? (softmax.largest[i] * scale_log2 + log2f(sum)) * kLn2 : -INFINITY;
  }
  store_rows(y, inverse, tiles.queries(), p.y.head(b, int64_t(h) * hd), p.y.stride, first, T, hd);
}

template <int kHd>
void launch_forward(const Context& ctx, const ForwardParams<Bf16>& params) {
  const AttentionSizes& sizes = params.sizes;
  const BlockOrder order(int(ceil_div(sizes.T, kBlockRows)), sizes.B * sizes.Hq, sizes.S, sizes.hd,
                         sizes.Hq / sizes.Hkv, /*last_first=*/true);
  launch(ctx, "attention_forward",
         {.blocks = order.blocks(),
          .threads = kTensorThreads,
          .shared_bytes = ForwardTiles<kHd>::kBytes},
         attention_forward_tensor_kernel<kHd>, params, order);
}

}  // namespace

void attention_forward_tensor(const Context& ctx, const ForwardParams<Bf16>& params) {
  params.sizes.hd <= 64 ? launch_forward<64>(ctx, params) : launch_forward<128>(ctx, params);
}

}  // namespace sluice::cuda
