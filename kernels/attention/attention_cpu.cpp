// B batch, T queries, S keys, Hq query heads, Hkv key-value heads, hd head dim
#include "kernels/attention/attention_cpu.h"

#include <limits>
#include <vector>

#include "kernels/attention/attention_tile.h"
#include "kernels/gemm/blas.h"

namespace sluice::cpu {

void softmax_tile(const AttentionTile& tile, double* scores, OnlineSoftmax<double>& softmax) {
  detail::softmax_tile(tile, scores, softmax);
}
void gradient_tile(const AttentionTile& tile, const double* lse, const double* dy_y, double* scores,
                   double* dp) {
  detail::gradient_tile(tile, lse, dy_y, scores, dp);
}

namespace {

// Which keys the queries of one row of the batch see.
struct Mask {
  const int32_t* doc_begin = nullptr;
  int64_t query_begin = 0;
  int64_t window = 0;

  template <class Args>
  Mask(const Args& args, int64_t b)
      : doc_begin(args.doc_begin.template row<int32_t>(b)),
        query_begin(args.query_begin),
        window(args.window) {}
  int64_t begin(int64_t t) const {  // does not decrease with t
    const int64_t document = std::max<int64_t>(0, doc_begin[t] + query_begin);
    return window > 0 ? std::max(document, t + query_begin - window + 1) : document;
  }
  int64_t end(int64_t t) const { return t + query_begin + 1; }

  AttentionTile tile(int64_t first_query, int64_t rows, int64_t first_key, int64_t columns) const {
    AttentionTile tile{.rows = rows, .columns = columns};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t t = first_query + r;
      tile.end[r] = std::clamp<int64_t>(end(t) - first_key, 0, columns);
      tile.begin[r] = std::clamp<int64_t>(begin(t) - first_key, 0, tile.end[r]);
    }
    return tile;
  }
};

// Columns of one head in consecutive rows: a matrix of hd columns.
template <class T>
struct HeadMatrix {
  T* data = nullptr;
  int64_t stride = 0;

  template <class View>
  HeadMatrix(const View& view, int64_t b, int64_t head)
      : data(view.template row<std::remove_const_t<T>>(b * view.dim(1)) + head * view.dim(3)),
        stride(view.row_stride) {}
  T* row(int64_t index) const { return data + index * stride; }
};

template <class Args>
double scale_of(const Args& args) {
  return args.scale != 0 ? args.scale : 1 / std::sqrt(double(args.q.dim(3)));
}

// kQueryTile queries of one head, against all the keys that they see.
template <class T>
void query_tile_forward(const AttentionForward& args, int64_t b, int64_t h, int64_t first) {
  const int64_t tokens = args.q.dim(1), Hq = args.q.dim(2), hd = args.q.dim(3);
  const int64_t kv_head = h * args.k.dim(2) / Hq;
  const int64_t rows = std::min(kQueryTile, tokens - first);
  const HeadMatrix<const T> q(args.q, b, h), k(args.k, b, kv_head), v(args.v, b, kv_head);
  const HeadMatrix<T> y(args.y, b, h);
  const Mask mask(args, b);
  T scores[kQueryTile * kKeyTile];
  OnlineSoftmax<T> softmax;
  std::fill_n(softmax.largest, rows, std::numeric_limits<T>::lowest());
  for (int64_t r = 0; r < rows; ++r) std::fill_n(y.row(first + r), hd, T(0));
  const int64_t keys_end = std::min(args.k.dim(1), mask.end(first + rows - 1));
  for (int64_t key = mask.begin(first); key < keys_end; key += kKeyTile) {
    const int64_t columns = std::min(kKeyTile, keys_end - key);
    tile_gemm(false, true, rows, columns, hd, T(scale_of(args)), q.row(first), q.stride, k.row(key),
              k.stride, T(0), scores, columns);
    softmax_tile(mask.tile(first, rows, key, columns), scores, softmax);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < hd; ++i) y.row(first + r)[i] *= softmax.rescale[r];
    }
    tile_gemm(false, false, rows, hd, columns, T(1), scores, columns, v.row(key), v.stride, T(1),
              y.row(first), y.stride);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const bool sees = softmax.sum[r] != 0;  // else y is 0 already
    const T inverse = sees ? 1 / softmax.sum[r] : T(1);
    for (int64_t i = 0; i < hd; ++i) y.row(first + r)[i] *= inverse;
    if (args.lse) {
      args.lse.row<T>(b * tokens + first + r)[h] =
          sees ? softmax.largest[r] + std::log(softmax.sum[r])
               : -std::numeric_limits<T>::infinity();
    }
  }
}

// One query head's gradients; those of its keys and values are summed onto what is there.
template <class T>
void query_head_backward(const AttentionBackward& args, const TensorView& dy_y, int64_t b,
                         int64_t h) {
  const int64_t tokens = args.q.dim(1), hd = args.q.dim(3), keys = args.k.dim(1);
  const int64_t kv_head = h * args.k.dim(2) / args.q.dim(2);
  const HeadMatrix<const T> q(args.q, b, h), dy(args.dy, b, h), y(args.y, b, h);
  const HeadMatrix<const T> k(args.k, b, kv_head), v(args.v, b, kv_head);
  const HeadMatrix<T> dq(args.dq, b, h), dk(args.dk, b, kv_head), dv(args.dv, b, kv_head);
  const Mask mask(args, b);
  const T scale = T(scale_of(args));
  T scores[kQueryTile * kKeyTile], ds[kQueryTile * kKeyTile];
  T lse[kQueryTile], dots[kQueryTile];
  for (int64_t t = 0; t < tokens; ++t) {
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < hd; ++i) dot += double(dy.row(t)[i]) * y.row(t)[i];
    dy_y.row<T>(b * tokens + t)[h] = T(dot);
    if (!args.add_to_dq) std::fill_n(dq.row(t), hd, T(0));
  }
  for (int64_t key = 0; key < keys; key += kKeyTile) {
    const int64_t columns = std::min(kKeyTile, keys - key);
    const int64_t first_seeing = std::max<int64_t>(0, key - args.query_begin);
    for (int64_t first = first_seeing / kQueryTile * kQueryTile; first < tokens;
         first += kQueryTile) {
      if (mask.begin(first) >= key + columns) break;
      const int64_t rows = std::min(kQueryTile, tokens - first);
      for (int64_t r = 0; r < rows; ++r) {
        lse[r] = args.lse.row<T>(b * tokens + first + r)[h];
        dots[r] = dy_y.row<T>(b * tokens + first + r)[h];
      }
      tile_gemm(false, true, rows, columns, hd, scale, q.row(first), q.stride, k.row(key), k.stride,
                T(0), scores, columns);
      tile_gemm(false, true, rows, columns, hd, T(1), dy.row(first), dy.stride, v.row(key),
                v.stride, T(0), ds, columns);
      gradient_tile(mask.tile(first, rows, key, columns), lse, dots, scores, ds);
      tile_gemm(true, false, columns, hd, rows, T(1), scores, columns, dy.row(first), dy.stride,
                T(1), dv.row(key), dv.stride);
      tile_gemm(true, false, columns, hd, rows, scale, ds, columns, q.row(first), q.stride, T(1),
                dk.row(key), dk.stride);
      tile_gemm(false, false, rows, hd, columns, scale, ds, columns, k.row(key), k.stride, T(1),
                dq.row(first), dq.stride);
    }
  }
}

}  // namespace

template <class T>
void attention_forward(const AttentionForward& args) {
  const int64_t B = args.q.dim(0), tokens = args.q.dim(1), Hq = args.q.dim(2);
  const int64_t tiles = (tokens + kQueryTile - 1) / kQueryTile;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < B * Hq * tiles; ++task) {
    // Later queries see more keys: they go first.
    query_tile_forward<T>(args, task / tiles / Hq, task / tiles % Hq,
                          (tiles - 1 - task % tiles) * kQueryTile);
  }
}

template <class T>
void attention_merge(const AttentionMerge& args) {
  const int64_t rows = args.y.rows(), Hq = args.y.dim(2), hd = args.y.dim(3);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t h = 0; h < Hq; ++h) {
      T& lse = args.lse.row<T>(row)[h];
      const double own = lse, part = args.part_lse.row<T>(row)[h];
      const double largest = std::max(own, part);
      if (part == -std::numeric_limits<double>::infinity()) continue;
      const double own_weight = std::exp(own - largest), part_weight = std::exp(part - largest);
      const double sum = own_weight + part_weight;
      T* const y = args.y.row<T>(row) + h * hd;
      const T* const part_y = args.part_y.row<T>(row) + h * hd;
      for (int64_t i = 0; i < hd; ++i) {
        y[i] = T((own_weight * y[i] + part_weight * part_y[i]) / sum);
      }
      lse = T(largest + std::log(sum));
    }
  }
}

// The query heads that share keys are one task, and are taken in order.
template <class T>
void attention_backward(const AttentionBackward& args, TensorView dy_y) {
  const int64_t B = args.q.dim(0), Hq = args.q.dim(2), hd = args.q.dim(3);
  const int64_t keys = args.k.dim(1), Hkv = args.k.dim(2);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < B * Hkv; ++task) {
    const int64_t b = task / Hkv, kv_head = task % Hkv;
    const HeadMatrix<T> dk(args.dk, b, kv_head), dv(args.dv, b, kv_head);
    for (int64_t s = 0; s < keys; ++s) {
      std::fill_n(dk.row(s), hd, T(0));
      std::fill_n(dv.row(s), hd, T(0));
    }
    for (int64_t h = kv_head * (Hq / Hkv); h < (kv_head + 1) * (Hq / Hkv); ++h) {
      query_head_backward<T>(args, dy_y, b, h);
    }
  }
}

template void attention_forward<float>(const AttentionForward&);
template void attention_forward<double>(const AttentionForward&);
template void attention_merge<float>(const AttentionMerge&);
template void attention_merge<double>(const AttentionMerge&);
template void attention_backward<float>(const AttentionBackward&, TensorView);
template void attention_backward<double>(const AttentionBackward&, TensorView);

}  // namespace sluice::cpu
