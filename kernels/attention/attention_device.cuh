// What all attention kernels are told, and which keys queries see.
// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
#pragma once

#include <cstdlib>

#include "kernels/attention/attention_cuda.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"

namespace sluice::cuda {

// A (B, rows, heads, hd) tensor of T, or const T.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t stride = 0;        // elements from one row to the next
  int64_t batch_stride = 0;  // elements from one row of the batch to the next

  HeadRows() = default;
  template <class View>
  explicit HeadRows(const View& view)
      : data(pointer<std::remove_const_t<T>>(view)),
        stride(view.row_stride),
        batch_stride(view.dim(1) * view.row_stride) {}
  // Row 0 of a head; `column` = head * hd.
  __device__ T* head(int b, int64_t column) const { return data + b * batch_stride + column; }
};

constexpr int kMaxTokens = 1 << 29;  // of a row: indices and their differences are ints

// Query t sees keys [begin(b, t), end(t)), maybe none. Neither bound decreases with t.
struct AttentionMask {
  const int32_t* doc_begin = nullptr;
  int64_t doc_stride = 0;
  int query_begin = 0;
  int window = 0;
  int keys = 0;

  __device__ int end(int t) const { return max(0, min(t + query_begin + 1, keys)); }
  __device__ int begin(int b, int t) const {
    const int document = max(doc_begin[b * doc_stride + t], -kMaxTokens) + query_begin;
    const int first = window > 0 ? max(document, t + query_begin - window + 1) : document;
    return min(max(0, first), end(t));
  }
};

struct AttentionSizes {
  int B = 0, T = 0, S = 0, Hq = 0, Hkv = 0, hd = 0;
};

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <class T>
struct ForwardParams {
  AttentionSizes sizes;
  AttentionMask mask;
  HeadRows<const T> q, k, v;
  HeadRows<T> y;
  float* lse = nullptr;  // or null
  int64_t lse_stride = 0;
  float scale = 0;
};

// What the backward needs of a query beside its rows. A query that sees nothing has log2_sum
// +infinity: all its probabilities come out 0.
struct alignas(16) QueryStats {
  float log2_sum = 0;      // log2(e) lse
  float dy_y = 0;          // dy . y
  int begin = 0, end = 0;  // the keys that it sees
};

template <class T>
struct BackwardParams {
  AttentionSizes sizes;
  AttentionMask mask;
  HeadRows<const T> dy, q, k, v, y;
  const float* lse = nullptr;
  int64_t lse_stride = 0;
  const QueryStats* stats = nullptr;  // (B, Hq, T)
  HeadRows<T> dq, dk, dv;
  float scale = 0;
  bool add_to_dq = false;
};

template <class Args>
AttentionSizes sizes_of(const Args& args) {
  return {.B = int(args.q.dim(0)),
          .T = int(args.q.dim(1)),
          .S = int(args.k.dim(1)),
          .Hq = int(args.q.dim(2)),
          .Hkv = int(args.k.dim(2)),
          .hd = int(args.q.dim(3))};
}
template <class Args>
AttentionMask mask_of(const Args& args) {
  SLUICE_CHECK(args.q.dim(1) + args.k.dim(1) + std::abs(args.query_begin) < kMaxTokens,
               "attention on a GPU takes rows of at most ", kMaxTokens, " tokens, got ",
               args.q.dim(1), " queries from ", args.query_begin, " on and ", args.k.dim(1),
               " keys");
  return {.doc_begin = args.doc_begin.template as<int32_t>(),
          .doc_stride = args.doc_begin.row_stride,
          .query_begin = int(args.query_begin),
          .window = int(std::min<int64_t>(args.window, kMaxTokens)),
          .keys = int(args.k.dim(1))};
}

// Tiles of queries which see a key of [.., keys_end), counted over all threads of the block:
// because bounds do not decrease, they are the first ones of a row.
template <int kThreads, int kQueries>
__device__ int count_seeing_tiles(const AttentionSizes& sizes, const AttentionMask& mask, int b,
                                  int keys_end) {
  const int tiles = (sizes.T + kQueries - 1) / kQueries;
  int count = 0;
  for (int first = 0; first < tiles; first += kThreads) {
    const int tile = first + threadIdx.x;
    count += __syncthreads_count(tile < tiles && mask.begin(b, tile * kQueries) < keys_end);
  }
  return count;
}

}  // namespace sluice::cuda
