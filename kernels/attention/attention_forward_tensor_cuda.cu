// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
//
// A block owns 128 queries of one head and walks the tiles of keys that they see, copied a tile
// ahead. The floor is 4 hd FLOPs for a pair of query and key; next to the tensor cores comes the
// exponential, half of their time at hd 128, all of it at hd 64. So the products of tile j with its
// keys and of tile j - 1 with its values are begun together, and the latter run while tile j goes
// through the softmax.
// Shared memory: 128 queries + 3 x (keys + values): at hd 128, 224 KB with tiles of 128 keys, 128
// KB with 64 where a block has no more.
#include <cmath>

#include "kernels/attention/attention_tensor.cuh"
#include "kernels/attention/attention_tensor_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kStages = 3;

template <int kHd, int kKeys>
struct ForwardTiles {
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

// The online softmax of a thread's two rows, over the columns that it holds: sums of
// 2^(score - base). The base need not be the largest score, only near it: so it seldom moves, and
// what was summed before is seldom rescaled.
template <int kKeys>
struct TileSoftmax {
  static constexpr float kSlack = 8;       // scores stay below base + kSlack, in powers of 2
  float base[2] = {-INFINITY, -INFINITY};  // the same along a row
  float sum[2] = {0, 0};                   // of this thread's columns
  float rescale[2] = {0, 0};               // what earlier sums must be multiplied by

  // Unscaled scores become weights.
  __device__ void fold(Accumulator (&scores)[kKeys / 8], float scale_log2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        largest = fmaxf(largest, fmaxf(scores[n].values[2 * i], scores[n].values[2 * i + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2)) * scale_log2;
      const float before = base[i];
      base[i] = largest > before + kSlack ? largest : before;
      rescale[i] = base[i] == before ? 1.0f : exp2_fast(before - base[i]);
      const float finite_base = base[i] == -INFINITY ? 0.0f : base[i];
      float tile_sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 2 * i; j < 2 * i + 2; ++j) {
          scores[n].values[j] = exp2_fast(scores[n].values[j] * scale_log2 - finite_base);
          tile_sum += scores[n].values[j];
        }
      }
      sum[i] = sum[i] * rescale[i] + tile_sum;
    }
  }
  __device__ bool any_rescaled() const {
    return __any_sync(kFullWarp, rescale[0] != 1.0f || rescale[1] != 1.0f);
  }
  __device__ float whole_sum(int i) const {
    const float half = sum[i] + __shfl_xor_sync(kFullWarp, sum[i], 1);
    return half + __shfl_xor_sync(kFullWarp, half, 2);
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

template <int kHd, int kKeys>
__global__ void __launch_bounds__(kTensorThreads, 1)
    attention_forward_tensor_kernel(ForwardParams<Bf16> p, BlockOrder order) {
  extern __shared__ __align__(1024) Bf16 memory[];
  const ForwardTiles<kHd, kKeys> tiles{memory};
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
  // Values are needed a tile later than keys.
  const auto copy_tiles = [&](int key_tile, int value_tile) {
    if (key_tile < count) {
      tiles.keys(key_tile).copy_async(k, p.k.stride, keys_begin + key_tile * kKeys, keys_end, hd);
    }
    if (value_tile >= 0 && value_tile < count) {
      tiles.values(value_tile)
          .copy_async(v, p.v.stride, keys_begin + value_tile * kKeys, keys_end, hd);
    }
    commit_copies();
  };
  tiles.queries().copy_async(q, p.q.stride, first, T, hd);
  copy_tiles(0, -1);
  const Warpgroups groups;

  const RowBounds bounds(p.sizes, p.mask, b, first);
  const float scale_log2 = p.scale * kLog2E;
  TileSoftmax<kKeys> softmax;
  FragmentA rows[kHd / kMmaK], weights[kKeys / kMmaK];
  Accumulator y[kHd / 8], scores[kKeys / 8];
  wait_tiles<0>();
  load_rows(rows, tiles.queries());
  if (count > 0) {
    begin_products(scores, rows);
    dot_rows(scores, rows, tiles.keys(0));
    end_products();
    copy_tiles(1, 0);
    wait_products<0>(scores);
    bounds.hide(scores, keys_begin);
    softmax.fold(scores, scale_log2);
    groups.copied<0>(1);
    to_fragments(weights, scores);
  }
  for (int tile = 1; tile < count; ++tile) {
    groups.wait_for_other(tile);
    begin_products(scores, rows);
    dot_rows(scores, rows, tiles.keys(tile));
    end_products();
    begin_products(y, weights);
    add_rows(y, weights, tiles.values(tile - 1));
    end_products();
    copy_tiles(tile + 1, tile);
    wait_products<1>(scores);
    bounds.hide(scores, keys_begin + tile * kKeys);
    if (p.scale > 0) softmax.fold(scores, scale_log2);  // always: before the wait
    groups.copied<0>(tile + 1);
    wait_products<0>(y);
    if (softmax.any_rescaled()) scale_rows(y, softmax.rescale);
    to_fragments(weights, scores);
  }
  if (count > 0) {
    groups.wait_for_other(count);
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
        sum > 0 ? (softmax.base[i] + log2f(sum)) * kLn2 : -INFINITY;
  }
  store_rows(y, inverse, tiles.queries(), p.y.head(b, int64_t(h) * hd), p.y.stride, first, T, hd);
}

template <int kHd, int kKeys>
void launch_forward(const Context& ctx, const ForwardParams<Bf16>& params) {
  const AttentionSizes& sizes = params.sizes;
  const BlockOrder order(int(ceil_div(sizes.T, kBlockRows)), sizes.B * sizes.Hq, sizes.S, sizes.hd,
                         sizes.Hq / sizes.Hkv, /*last_first=*/true);
  launch(ctx, "attention_forward",
         {.blocks = order.blocks(),
          .threads = kTensorThreads,
          .shared_bytes = ForwardTiles<kHd, kKeys>::kBytes},
         attention_forward_tensor_kernel<kHd, kKeys>, params, order);
}

int max_shared_bytes(Device device) {
  int bytes = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index));
  return bytes;
}

}  // namespace

void attention_forward_tensor(const Context& ctx, const ForwardParams<Bf16>& params) {
  if (params.sizes.hd <= 64) {
    launch_forward<64, 128>(ctx, params);
  } else if (max_shared_bytes(ctx.device) >= ForwardTiles<128, 128>::kBytes) {
    launch_forward<128, 128>(ctx, params);
  } else {
    launch_forward<128, 64>(ctx, params);
  }
}

}  // namespace sluice::cuda
