// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
//
// All three kernels work on tiles of 64 queries by 64 keys and on 64 columns of what they write; a
// wider head is a second block, which forms the scores again. That bounds neither the head dim nor
// the registers. A thread of 256 owns 4 x 4 numbers of a tile: rows y + 16 i, columns x + 16 j with
// x = thread % 16, y = thread / 16. The floor is f32 issue: 16 FMA for 8 loads from shared memory.
#include <cmath>

#include "kernels/attention/attention_plain_cuda.h"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

constexpr int kTile = 64;
constexpr int kDepth = 16;  // columns of two operands that are in shared memory at a time
constexpr int kThreads = 256;
constexpr int kSide = 4;
constexpr int kLanes = kTile / kSide;  // threads along one side of a tile

struct SharedTiles {
  float a[kTile][kDepth + 1];
  float b[kTile][kDepth + 1];
  float weights[kTile][kTile + 1];
  float values[kTile][kTile];
};

struct Part {  // of a tile, one thread's
  float at[kSide][kSide] = {};
};
__device__ inline int row_of(int i) { return threadIdx.x / kLanes + i * kLanes; }
__device__ inline int column_of(int j) { return threadIdx.x % kLanes + j * kLanes; }

// Rows [row, row + kTile) and columns [column, column + kColumns) of one head; 0 outside of it.
template <class T, int kColumns, int kPitch>
__device__ void load_tile(float (&to)[kTile][kPitch], const T* head, int64_t stride, int row,
                          int rows, int column, int columns) {
  for (int n = threadIdx.x; n < kTile * kColumns; n += kThreads) {
    const int r = n / kColumns, c = n % kColumns;
    const bool inside = row + r < rows && column + c < columns;
    to[r][c] = inside ? to_float(head[int64_t(row + r) * stride + column + c]) : 0.0f;
  }
}

// a b^T over the head dim, for the tiles that begin at the rows a_row and b_row.
template <class T>
__device__ Part dot_rows(SharedTiles& tiles, const T* a, int64_t a_stride, int a_row, int a_rows,
                         const T* b, int64_t b_stride, int b_row, int b_rows, int hd) {
  Part sum;
  for (int depth = 0; depth < hd; depth += kDepth) {
    __syncthreads();
    load_tile<T, kDepth>(tiles.a, a, a_stride, a_row, a_rows, depth, hd);
    load_tile<T, kDepth>(tiles.b, b, b_stride, b_row, b_rows, depth, hd);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
#pragma unroll
        for (int j = 0; j < kSide; ++j)
          sum.at[i][j] += tiles.a[row_of(i)][d] * tiles.b[column_of(j)][d];
      }
    }
  }
  return sum;
}

// sum += weights values, or weights^T values: weights as this block's threads give them, values 64
// columns of one head.
template <bool kTransposed, class T>
__device__ void add_weighted(SharedTiles& tiles, Part& sum, const Part& weights, const T* head,
                             int64_t stride, int row, int rows, int column, int hd) {
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      if constexpr (kTransposed) {
        tiles.weights[column_of(j)][row_of(i)] = weights.at[i][j];
      } else {
        tiles.weights[row_of(i)][column_of(j)] = weights.at[i][j];
      }
    }
  }
  load_tile<T, kTile>(tiles.values, head, stride, row, rows, column, hd);
  __syncthreads();
#pragma unroll 8
  for (int s = 0; s < kTile; ++s) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j)
        sum.at[i][j] += tiles.weights[row_of(i)][s] * tiles.values[s][column_of(j)];
    }
  }
}

template <class T>
__device__ void store_part(const Part& part, float scale, T* head, int64_t stride, int row,
                           int rows, int column, int hd, bool add) {
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      if (row + row_of(i) >= rows || column + column_of(j) >= hd) continue;
      T& to = head[int64_t(row + row_of(i)) * stride + column + column_of(j)];
      to = from_float<T>(scale * part.at[i][j] + (add ? to_float(to) : 0.0f));
    }
  }
}

// Over the threads that share a row.
__device__ inline float max_along_row(float value) { return warp_max<kLanes>(value); }
__device__ inline float sum_along_row(float value) { return warp_sum<kLanes>(value); }

// The online softmax of a thread's four rows.
struct Softmax {
  float largest[kSide], sum[kSide];
  int begin[kSide], end[kSide];  // the keys that a row sees

  __device__ Softmax(const AttentionSizes& sizes, const AttentionMask& mask, int b, int first) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int t = min(first + row_of(i), sizes.T - 1);
      begin[i] = mask.begin(b, t), end[i] = mask.end(t);
      largest[i] = -INFINITY, sum[i] = 0;
    }
  }
  // scores become probabilities over the largest so far, and `y` is brought to that measure.
  __device__ void fold(Part& scores, float scale, int first_key, Part& y) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      float highest = largest[i];
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int s = first_key + column_of(j);
        const bool sees = s >= begin[i] && s < end[i];
        scores.at[i][j] = sees ? scale * scores.at[i][j] : -INFINITY;
        highest = fmaxf(highest, scores.at[i][j]);
      }
      highest = max_along_row(highest);
      const float base = highest == -INFINITY ? 0.0f : highest;
      const float rescale = expf(largest[i] - base);
      float tile_sum = 0;
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        scores.at[i][j] = expf(scores.at[i][j] - base);
        tile_sum += scores.at[i][j];
        y.at[i][j] *= rescale;
      }
      sum[i] = sum[i] * rescale + sum_along_row(tile_sum);
      largest[i] = highest;
    }
  }
};

// Of the work of a block: y is the head's slice of kTile columns.
struct Work {
  int b, head, tile, column;
  __device__ Work(int tiles, int heads)
      : b(blockIdx.x / tiles / heads),
        head(blockIdx.x / tiles % heads),
        tile(blockIdx.x % tiles),
        column(blockIdx.y * kTile) {}
};

// A block owns 64 queries of one head, and 64 columns of their y.
template <class T>
__global__ void __launch_bounds__(kThreads) attention_forward_plain_kernel(ForwardParams<T> p) {
  __shared__ SharedTiles tiles;
  const auto [B, T_, S, Hq, Hkv, hd] = p.sizes;
  const Work work((T_ + kTile - 1) / kTile, Hq);
  const int first = work.tile * kTile;
  const int64_t kv_column = int64_t(work.head * int64_t(Hkv) / Hq) * hd;
  const T* const q = p.q.head(work.b, int64_t(work.head) * hd);
  const T* const k = p.k.head(work.b, kv_column);
  const T* const v = p.v.head(work.b, kv_column);
  Softmax softmax(p.sizes, p.mask, work.b, first);
  Part y;
  const int keys_end = p.mask.end(min(first + kTile, T_) - 1);
  for (int key = p.mask.begin(work.b, first) / kTile * kTile; key < keys_end; key += kTile) {
    Part scores = dot_rows(tiles, q, p.q.stride, first, T_, k, p.k.stride, key, S, hd);
    softmax.fold(scores, p.scale, key, y);
    add_weighted<false>(tiles, y, scores, v, p.v.stride, key, S, work.column, hd);
  }
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const bool sees = softmax.sum[i] > 0;
#pragma unroll
    for (int j = 0; j < kSide; ++j) y.at[i][j] = sees ? y.at[i][j] / softmax.sum[i] : 0.0f;
    const int t = first + row_of(i);
    if (p.lse != nullptr && t < T_ && work.column == 0 && threadIdx.x % kLanes == 0) {
      p.lse[(work.b * int64_t(T_) + t) * p.lse_stride + work.head] =
          sees ? softmax.largest[i] + logf(softmax.sum[i]) : -INFINITY;
    }
  }
  store_part(y, 1.0f, p.y.head(work.b, int64_t(work.head) * hd), p.y.stride, first, T_, work.column,
             hd, false);
}

// p and ds = p (dp - dy . y) of a tile.
struct TileGradient {
  Part weights, ds;
};
template <class T>
__device__ TileGradient tile_gradient(SharedTiles& tiles, const BackwardParams<T>& p, int b, int h,
                                      int first, int key) {
  const auto [B, T_, S, Hq, Hkv, hd] = p.sizes;
  const int64_t column = int64_t(h) * hd, kv_column = int64_t(h * int64_t(Hkv) / Hq) * hd;
  TileGradient tile;
  tile.weights = dot_rows(tiles, p.q.head(b, column), p.q.stride, first, T_, p.k.head(b, kv_column),
                          p.k.stride, key, S, hd);
  tile.ds = dot_rows(tiles, p.dy.head(b, column), p.dy.stride, first, T_, p.v.head(b, kv_column),
                     p.v.stride, key, S, hd);
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const int t = min(first + row_of(i), T_ - 1);
    const QueryStats stats = p.stats[(int64_t(b) * Hq + h) * T_ + t];
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int s = key + column_of(j);
      const bool sees = first + row_of(i) < T_ && s >= stats.begin && s < stats.end;
      const float weight =
          sees ? exp2f(p.scale * kLog2E * tile.weights.at[i][j] - stats.log2_sum) : 0.0f;
      tile.weights.at[i][j] = weight;
      tile.ds.at[i][j] = weight * (tile.ds.at[i][j] - stats.dy_y);
    }
  }
  return tile;
}

// A block owns 64 keys of one key-value head, and 64 columns of their dk and dv: it takes the query
// heads that read them in order, and of each the tiles of queries that see them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_dkv_plain_kernel(BackwardParams<T> p) {
  __shared__ SharedTiles tiles;
  const auto [B, T_, S, Hq, Hkv, hd] = p.sizes;
  const Work work((S + kTile - 1) / kTile, Hkv);
  const int key = work.tile * kTile, group = Hq / Hkv;
  Part dk, dv;
  const int first_seeing = max(0, key - p.mask.query_begin);
  const int tiles_end =
      count_seeing_tiles<kThreads, kTile>(p.sizes, p.mask, work.b, min(key + kTile, S));
  for (int h = work.head * group; h < (work.head + 1) * group; ++h) {
    const T* const q = p.q.head(work.b, int64_t(h) * hd);
    const T* const dy = p.dy.head(work.b, int64_t(h) * hd);
    for (int tile = first_seeing / kTile; tile < tiles_end; ++tile) {
      const int first = tile * kTile;
      const TileGradient gradient = tile_gradient(tiles, p, work.b, h, first, key);
      add_weighted<true>(tiles, dv, gradient.weights, dy, p.dy.stride, first, T_, work.column, hd);
      add_weighted<true>(tiles, dk, gradient.ds, q, p.q.stride, first, T_, work.column, hd);
    }
  }
  const int64_t column = int64_t(work.head) * hd;
  store_part(dv, 1.0f, p.dv.head(work.b, column), p.dv.stride, key, S, work.column, hd, false);
  store_part(dk, p.scale, p.dk.head(work.b, column), p.dk.stride, key, S, work.column, hd, false);
}

// A block owns 64 queries of one head, and 64 columns of their dq.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_dq_plain_kernel(BackwardParams<T> p) {
  __shared__ SharedTiles tiles;
  const auto [B, T_, S, Hq, Hkv, hd] = p.sizes;
  const Work work((T_ + kTile - 1) / kTile, Hq);
  const int first = work.tile * kTile;
  const T* const k = p.k.head(work.b, int64_t(work.head * int64_t(Hkv) / Hq) * hd);
  Part dq;
  const int keys_end = p.mask.end(min(first + kTile, T_) - 1);
  for (int key = p.mask.begin(work.b, first) / kTile * kTile; key < keys_end; key += kTile) {
    const TileGradient gradient = tile_gradient(tiles, p, work.b, work.head, first, key);
    add_weighted<false>(tiles, dq, gradient.ds, k, p.k.stride, key, S, work.column, hd);
  }
  store_part(dq, p.scale, p.dq.head(work.b, int64_t(work.head) * hd), p.dq.stride, first, T_,
             work.column, hd, p.add_to_dq);
}

Grid grid_of(const AttentionSizes& sizes, int rows, int heads) {
  return {.blocks = {unsigned(ceil_div(rows, kTile) * sizes.B * heads),
                     unsigned(ceil_div(sizes.hd, kTile))},
          .threads = kThreads};
}

}  // namespace

template <class T>
void attention_forward_plain(const Context& ctx, const ForwardParams<T>& params) {
  launch(ctx, "attention_forward", grid_of(params.sizes, params.sizes.T, params.sizes.Hq),
         attention_forward_plain_kernel<T>, params);
}

template <class T>
void attention_backward_plain(const Context& ctx, const BackwardParams<T>& params) {
  launch(ctx, "attention_backward", grid_of(params.sizes, params.sizes.S, params.sizes.Hkv),
         attention_backward_dkv_plain_kernel<T>, params);
  launch(ctx, "attention_backward", grid_of(params.sizes, params.sizes.T, params.sizes.Hq),
         attention_backward_dq_plain_kernel<T>, params);
}

template void attention_forward_plain<float>(const Context&, const ForwardParams<float>&);
template void attention_forward_plain<Bf16>(const Context&, const ForwardParams<Bf16>&);
template void attention_backward_plain<float>(const Context&, const BackwardParams<float>&);
template void attention_backward_plain<Bf16>(const Context&, const BackwardParams<Bf16>&);

}  // namespace sluice::cuda
