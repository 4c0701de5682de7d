// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
//
// A block owns 128 queries of one head and their dq, in registers; it walks the tiles of 64 keys
// that they see. The floor is 6 hd FLOPs for a pair of query and key, of which 4 hd are formed by
// the other kernel of the backward too: the price of adding in a fixed order without going through
// memory. (Products read the queries from shared memory: of registers kept for them over the loop,
// ptxas 13.0 lets ds have the same ones at hd 64.)
// Shared memory: 128 queries, their dy and 3 x (keys + values) = 160 KB at hd 128.
#include <cmath>

#include "kernels/attention/attention_tensor.cuh"
#include "kernels/attention/attention_tensor_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kStages = 3;
constexpr int kKeys = 64;  // of a tile

template <int kHd>
struct DqTiles {
  using Queries = HeadTile<kBlockRows, kHd>;
  using Keys = HeadTile<kKeys, kHd>;
  static constexpr int kBytes =
      2 * (Queries::kElements + kStages * Keys::kElements) * int(sizeof(Bf16));
  Bf16* memory;

  __device__ Queries queries() const { return {memory}; }
  __device__ Queries dy() const { return {memory + Queries::kElements}; }
  __device__ Keys keys(int tile) const {
    return {memory + 2 * (Queries::kElements + tile % kStages * Keys::kElements)};
  }
  __device__ Keys values(int tile) const { return {keys(tile).data + Keys::kElements}; }
};

// Of a thread's two queries; queries beyond the last get probabilities of 0.
struct QueryRows {
  float log2_sum[2], dy_y[2];

  __device__ QueryRows(const BackwardParams<Bf16>& p, int b, int h, int first) {
    const int T = p.sizes.T;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = first + thread_row(i);
      const QueryStats& stats = p.stats[(int64_t(b) * p.sizes.Hq + h) * T + min(t, T - 1)];
      log2_sum[i] = t < T ? stats.log2_sum : INFINITY;
      dy_y[i] = stats.dy_y;
    }
  }
  __device__ void to_weights(Accumulator (&scores)[kKeys / 8], float scale_log2) const {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[n].values[j] = exp2_fast(scores[n].values[j] * scale_log2 - log2_sum[j / 2]);
      }
    }
  }
  // dp becomes ds = p (dp - dy . y).
  __device__ void to_gradients(Accumulator (&dp)[kKeys / 8],
                               const Accumulator (&weights)[kKeys / 8]) const {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        dp[n].values[j] = weights[n].values[j] * (dp[n].values[j] - dy_y[j / 2]);
    }
  }
};

// dq holds the shares of other keys: what a thread will write over is added before it is scaled and
// rounded.
template <int kHd>
__device__ void add_stored(Accumulator (&d)[kHd / 8], float scale, const Bf16* head, int64_t stride,
                           int first, int end, int hd) {
#pragma unroll
  for (int n = 0; n < kHd / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + thread_row(i), column = n * 8 + Accumulator::column(0);
      if (row >= end || column >= hd) continue;
      const float2 stored =
          unpack_bf16(*reinterpret_cast<const uint32_t*>(head + row * stride + column));
      d[n].values[2 * i] += stored.x / scale;
      d[n].values[2 * i + 1] += stored.y / scale;
    }
  }
}

template <int kHd>
__global__ void __launch_bounds__(kTensorThreads, 1)
    attention_backward_dq_tensor_kernel(BackwardParams<Bf16> p, BlockOrder order) {
  extern __shared__ __align__(1024) Bf16 memory[];
  const DqTiles<kHd> tiles{memory};
  const auto [B, T, S, Hq, Hkv, hd] = p.sizes;
  const auto [all_heads, query_tile] = order.place();
  const int b = all_heads / Hq, h = all_heads % Hq, first = query_tile * kBlockRows;
  const int64_t column = int64_t(h) * hd, kv_column = int64_t(h / (Hq / Hkv)) * hd;
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
  tiles.queries().copy_async(p.q.head(b, column), p.q.stride, first, T, hd);
  tiles.dy().copy_async(p.dy.head(b, column), p.dy.stride, first, T, hd);
  copy_keys(0);

  const QueryRows rows(p, b, h, first);
  const RowBounds bounds(p.sizes, p.mask, b, first);
  const float scale_log2 = p.scale * kLog2E;
  FragmentA ds[kKeys / kMmaK];
  Accumulator dq[kHd / 8], scores[kKeys / 8], dp[kKeys / 8];
  const Warpgroups groups;
  groups.copied<0>(0);
  for (int tile = 0; tile < count; ++tile) {
    groups.wait_for_other(tile);
    begin_products(scores);
    dot_rows(scores, tiles.queries(), tiles.keys(tile));
    end_products();
    begin_products(dp);
    dot_rows(dp, tiles.dy(), tiles.values(tile));
    end_products();
    copy_keys(tile + 1);
    wait_products<1>(scores);
    bounds.hide(scores, keys_begin + tile * kKeys);
    if (p.scale > 0) rows.to_weights(scores, scale_log2);  // always: before the wait
    wait_products<0>(dp);
    rows.to_gradients(dp, scores);
    to_fragments(ds, dp);
    begin_products(dq, ds);
    add_rows(dq, ds, tiles.keys(tile));
    end_products();
    groups.copied<0>(tile + 1);
    wait_products<0>(dq);
  }
  groups.wait_for_other(count);

  wait_tiles<0>();
  Bf16* const to = p.dq.head(b, column);
  if (p.add_to_dq) add_stored<kHd>(dq, p.scale, to, p.dq.stride, first, T, hd);
  const float scales[2] = {p.scale, p.scale};
  store_rows(dq, scales, tiles.queries(), to, p.dq.stride, first, T, hd);
}

template <int kHd>
void launch_dq(const Context& ctx, const BackwardParams<Bf16>& params) {
  const AttentionSizes& sizes = params.sizes;
  const BlockOrder order(int(ceil_div(sizes.T, kBlockRows)), sizes.B * sizes.Hq, sizes.S, sizes.hd,
                         sizes.Hq / sizes.Hkv, /*last_first=*/true);
  launch(
      ctx, "attention_backward",
      {.blocks = order.blocks(), .threads = kTensorThreads, .shared_bytes = DqTiles<kHd>::kBytes},
      attention_backward_dq_tensor_kernel<kHd>, params, order);
}

}  // namespace

void attention_backward_dq_tensor(const Context& ctx, const BackwardParams<Bf16>& params) {
  params.sizes.hd <= 64 ? launch_dq<64>(ctx, params) : launch_dq<128>(ctx, params);
}

}  // namespace sluice::cuda
