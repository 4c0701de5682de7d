// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
//
// A block owns 128 keys of one key-value head and their dk and dv, in registers; it walks the query
// heads that read them in order, and of each the tiles of 64 queries that see a key. Scores lie
// with keys along rows, S^T = K Q^T and dP^T = V dY^T, so that P^T and dS^T are the A of dV += P^T
// dY and dK += dS^T Q as they come. The floor is 8 hd FLOPs for a pair of query and key; nothing of
// a pair leaves the registers. Shared memory: keys, values and 3 x (queries + dy + their numbers) =
// 162 KB at hd 128.
#include <cmath>

#include "kernels/attention/attention_tensor.cuh"
#include "kernels/attention/attention_tensor_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kStages = 3;
constexpr int kQueries = 64;  // of a tile

template <int kHd>
struct DkvTiles {
  using Keys = HeadTile<kBlockRows, kHd>;
  using Queries = HeadTile<kQueries, kHd>;
  static constexpr int kTileElements = 2 * (Keys::kElements + kStages * Queries::kElements);
  static constexpr int kBytes =
      kTileElements * int(sizeof(Bf16)) + kStages * kQueries * int(sizeof(QueryStats));
  Bf16* memory;

  __device__ Keys keys() const { return {memory}; }
  __device__ Keys values() const { return {memory + Keys::kElements}; }
  __device__ Queries queries(int item) const {
    return {memory + 2 * (Keys::kElements + item % kStages * Queries::kElements)};
  }
  __device__ Queries dy(int item) const { return {queries(item).data + Queries::kElements}; }
  __device__ QueryStats* stats(int item) const {
    return reinterpret_cast<QueryStats*>(memory + kTileElements) + item % kStages * kQueries;
  }
};

// What a block goes through: of every query head of the group, the tiles from the first that sees
// its keys to the last.
struct QueryWalk {
  int first_tile, end_tile;
  int head, tile;  // at present

  __device__ QueryWalk(const BackwardParams<Bf16>& p, int b, int kv_head, int key) {
    const int keys_end = min(key + kBlockRows, p.sizes.S);
    end_tile = count_seeing_tiles<kTensorThreads, kQueries>(p.sizes, p.mask, b, keys_end);
    first_tile = min(max(0, key - p.mask.query_begin) / kQueries, end_tile);
    head = kv_head * (p.sizes.Hq / p.sizes.Hkv);
    tile = first_tile;
  }
  __device__ int items(const AttentionSizes& sizes) const {
    return (end_tile - first_tile) * (sizes.Hq / sizes.Hkv);
  }
  __device__ int first_query() const { return tile * kQueries; }
  __device__ void advance() {
    if (++tile < end_tile) return;
    tile = first_tile;
    ++head;
  }
};

template <int kHd>
__device__ void copy_queries(const DkvTiles<kHd>& tiles, const BackwardParams<Bf16>& p, int item,
                             int b, const QueryWalk& at) {
  const int T = p.sizes.T, hd = p.sizes.hd, h = at.head, first = at.first_query();
  const int64_t column = int64_t(h) * hd;
  tiles.queries(item).copy_async(p.q.head(b, column), p.q.stride, first, T, hd);
  tiles.dy(item).copy_async(p.dy.head(b, column), p.dy.stride, first, T, hd);
  if (threadIdx.x < kQueries) {  // zeros beyond the last query: it sees nothing
    const bool valid = first + int(threadIdx.x) < T;
    const QueryStats* const stats = p.stats + (int64_t(b) * p.sizes.Hq + h) * T;
    copy_async_16(tiles.stats(item) + threadIdx.x, stats + (valid ? first + threadIdx.x : 0),
                  valid);
  }
}

// Scores of pairs that do not see each other become -infinity. Rows are keys from `key` on, columns
// the tile's queries, of which the first `queries` exist.
__device__ inline void hide(Accumulator (&scores)[kQueries / 8], const QueryStats* stats, int key,
                            int queries) {
  if (stats[min(queries, kQueries) - 1].begin <= key && stats[0].end >= key + kBlockRows) return;
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const QueryStats& query = stats[n * 8 + Accumulator::column(j)];
      const int s = key + thread_row(j / 2);
      const bool sees = s >= query.begin && s < query.end;
      scores[n].values[j] = sees ? scores[n].values[j] : -INFINITY;
    }
  }
}

// scores become p, dp becomes ds = p (dp - dy . y); the columns are queries.
__device__ inline void to_weights(Accumulator (&scores)[kQueries / 8], const QueryStats* stats,
                                  float scale_log2) {
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float log2_sum = stats[n * 8 + Accumulator::column(j)].log2_sum;
      scores[n].values[j] = exp2_fast(scores[n].values[j] * scale_log2 - log2_sum);
    }
  }
}
__device__ inline void to_gradients(Accumulator (&dp)[kQueries / 8],
                                    const Accumulator (&weights)[kQueries / 8],
                                    const QueryStats* stats) {
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float dy_y = stats[n * 8 + Accumulator::column(j)].dy_y;
      dp[n].values[j] = weights[n].values[j] * (dp[n].values[j] - dy_y);
    }
  }
}

template <int kHd>
__global__ void __launch_bounds__(kTensorThreads, 1)
    attention_backward_dkv_tensor_kernel(BackwardParams<Bf16> p, BlockOrder order) {
  extern __shared__ __align__(1024) Bf16 memory[];
  const DkvTiles<kHd> tiles{memory};
  const int S = p.sizes.S, hd = p.sizes.hd;
  const auto [all_heads, key_tile] = order.place();
  const int b = all_heads / p.sizes.Hkv, kv_head = all_heads % p.sizes.Hkv;
  const int key = key_tile * kBlockRows;
  const int64_t kv_column = int64_t(kv_head) * hd;
  const float scale_log2 = p.scale * kLog2E;
  QueryWalk at(p, b, kv_head, key);
  QueryWalk ahead = at;  // what is copied next
  const int items = at.items(p.sizes);
  const auto copy_item = [&](int item) {
    if (item < items) copy_queries(tiles, p, item, b, ahead);
    ahead.advance();
    commit_copies();
  };
  tiles.keys().copy_async(p.k.head(b, kv_column), p.k.stride, key, S, hd);
  tiles.values().copy_async(p.v.head(b, kv_column), p.v.stride, key, S, hd);
  copy_item(0);
  const Warpgroups groups;
  groups.copied<0>(0);

  Accumulator dk[kHd / 8], dv[kHd / 8], scores[kQueries / 8], dp[kQueries / 8];
  FragmentA weights[kQueries / kMmaK], ds[kQueries / kMmaK];
  for (int item = 0; item < items; ++item) {
    groups.wait_for_other(item);
    begin_products(scores);
    dot_rows(scores, tiles.keys(), tiles.queries(item));
    end_products();
    begin_products(dp);
    dot_rows(dp, tiles.values(), tiles.dy(item));
    end_products();
    copy_item(item + 1);
    wait_products<1>(scores);
    hide(scores, tiles.stats(item), key, p.sizes.T - at.first_query());
    if (p.scale > 0) to_weights(scores, tiles.stats(item), scale_log2);  // always: before the wait
    to_fragments(weights, scores);
    wait_products<0>(dp);
    to_gradients(dp, scores, tiles.stats(item));
    to_fragments(ds, dp);
    begin_products(dv, weights);
    begin_products(dk, ds);
    add_rows(dv, weights, tiles.dy(item));
    add_rows(dk, ds, tiles.queries(item));
    end_products();
    groups.copied<0>(item + 1);
    at.advance();
    wait_products<0>(dk);
    wait_products<0>(dv);
  }
  groups.wait_for_other(items);

  wait_tiles<0>();
  const float ones[2] = {1, 1}, scales[2] = {p.scale, p.scale};
  store_rows(dv, ones, tiles.values(), p.dv.head(b, kv_column), p.dv.stride, key, S, hd);
  store_rows(dk, scales, tiles.keys(), p.dk.head(b, kv_column), p.dk.stride, key, S, hd);
}

template <int kHd>
void launch_dkv(const Context& ctx, const BackwardParams<Bf16>& params) {
  const AttentionSizes& sizes = params.sizes;
  const BlockOrder order(int(ceil_div(sizes.S, kBlockRows)), sizes.B * sizes.Hkv,
                         int64_t(sizes.T) * (sizes.Hq / sizes.Hkv), sizes.hd, 1,
                         /*last_first=*/false);
  launch(
      ctx, "attention_backward",
      {.blocks = order.blocks(), .threads = kTensorThreads, .shared_bytes = DkvTiles<kHd>::kBytes},
      attention_backward_dkv_tensor_kernel<kHd>, params, order);
}

}  // namespace

void attention_backward_dkv_tensor(const Context& ctx, const BackwardParams<Bf16>& params) {
  params.sizes.hd <= 64 ? launch_dkv<64>(ctx, params) : launch_dkv<128>(ctx, params);
}

}  // namespace sluice::cuda
