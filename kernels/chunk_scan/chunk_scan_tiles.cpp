// chunk_scan as tiles of matrix products: per chunk and group one Q x Q tile of scores C B^T, per
// head the decays on top of it and the products with x and dy.
// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
#include <algorithm>
#include <cmath>

#include "kernels/chunk_scan/chunk_scan_cpu.h"
#include "kernels/chunk_scan/chunk_scan_tile.h"
#include "kernels/core/chunks.h"
#include "kernels/core/tile_memory.h"
#include "kernels/gemm/blas.h"

namespace sluice::cpu {
namespace {

// Q x Q tiles are zero above the diagonal. Products with them go by this many rows, so that most of
// the zeros are left out.
constexpr int64_t kBand = 64;

// tile = a b^T on and below the diagonal (and a little above); both have Q rows of `width`.
template <class T>
void lower_scores(int64_t Q, int64_t width, Strided<const T> a, Strided<const T> b, T* tile) {
  for (int64_t t = 0; t < Q; t += kBand) {
    const int64_t end = std::min(Q, t + kBand);
    tile_gemm(false, true, end - t, end, width, T(1), a.row(t), a.stride, b.data, b.stride, T(0),
              tile + t * Q, Q);
  }
}

// out = tile in + beta out
template <class T>
void lower_product(int64_t Q, int64_t width, const T* tile, Strided<const T> in, T beta,
                   Strided<T> out) {
  for (int64_t t = 0; t < Q; t += kBand) {
    const int64_t end = std::min(Q, t + kBand);
    tile_gemm(false, false, end - t, width, end, T(1), tile + t * Q, Q, in.data, in.stride, beta,
              out.row(t), out.stride);
  }
}

// out = tile^T in
template <class T>
void upper_product(int64_t Q, int64_t width, const T* tile, Strided<const T> in, Strided<T> out) {
  for (int64_t s = 0; s < Q; s += kBand) {
    const int64_t end = std::min(Q, s + kBand);
    tile_gemm(true, false, end - s, width, Q - s, T(1), tile + s * Q + s, Q, in.row(s), in.stride,
              T(0), out.row(s), out.stride);
  }
}

// One chunk of one group: where its tokens and heads lie.
template <class T, class Args>
struct Group {
  const Args& args;
  int64_t chunk_row, g, Q, row0, first_head, end_head, P, N;

  Group(const Args& args, int64_t chunk_row, int64_t g)
      : args(args), chunk_row(chunk_row), g(g), P(args.x.dim(3)), N(args.B.dim(3)) {
    const int64_t tokens = args.x.dim(1), M = args.incoming.dim(1);
    const int64_t group_heads = args.x.dim(2) / args.B.dim(2);
    const ChunkSpan span(chunk_row % M, args.chunk, tokens);
    Q = span.size();
    row0 = chunk_row / M * tokens + span.begin;
    first_head = g * group_heads;
    end_head = first_head + group_heads;
  }
  // `view` is (B, T, ..., width): the columns of head or group `index` of the chunk's tokens.
  Strided<const T> of(const ConstTensorView& view, int64_t index) const {
    return {view.row<T>(row0) + index * view.dim(3), view.row_stride};
  }
  Strided<T> of(const TensorView& view, int64_t index) const {
    return {view.row<T>(row0) + index * view.dim(3), view.row_stride};
  }
  const T* incoming(int64_t h) const {
    return args.incoming.template row<T>(chunk_row) + h * P * N;
  }
  // Fills first, and nothing else, from the documents.
  void find_documents(int64_t* first) const {
    const int64_t M = args.incoming.dim(1), begin = chunk_row % M * args.chunk;
    const int32_t* const doc_begin = args.doc_begin.template row<int32_t>(chunk_row / M) + begin;
    for (int64_t t = 0; t < Q; ++t) first[t] = std::max<int64_t>(0, doc_begin[t] - begin);
  }
  // One head's dt and cum, packed, and the decay from the chunk's start to t: 0 if t does not see
  // the incoming state.
  void gather(int64_t h, T* dt, T* cum, T* entering) const {
    const int64_t M = args.incoming.dim(1), begin = chunk_row % M * args.chunk;
    const int32_t* const doc_begin = args.doc_begin.template row<int32_t>(chunk_row / M) + begin;
    for (int64_t t = 0; t < Q; ++t) {
      dt[t] = args.dt.template row<T>(row0 + t)[h];
      cum[t] = args.cum.template row<T>(row0 + t)[h];
      entering[t] = doc_begin[t] < begin ? std::exp(cum[t]) : T(0);
    }
  }
};

template <class T>
void group_forward(const ChunkScanForward& args, int64_t chunk_row, int64_t g) {
  const Group<T, ChunkScanForward> group(args, chunk_row, g);
  const int64_t Q = group.Q, P = group.P, N = group.N;
  TileMemory memory = TileMemory::of<T>(2 * Q * Q + 3 * Q + Q * 8 / sizeof(T), 6);
  T* const scores = memory.take<T>(Q * Q);
  T* const weights = memory.take<T>(Q * Q);
  T* const dt = memory.take<T>(Q);
  T* const cum = memory.take<T>(Q);
  T* const entering = memory.take<T>(Q);
  int64_t* const first = memory.take<int64_t>(Q);
  group.find_documents(first);
  const Strided<const T> C = group.of(args.C, g);
  lower_scores(Q, N, C, group.of(args.B, g), scores);
  // The share of the incoming states, for all of the group's heads at once, straight into y.
  const Strided<T> group_y = group.of(args.y, group.first_head);
  tile_gemm(false, true, Q, (group.end_head - group.first_head) * P, N, T(1), C.data, C.stride,
            group.incoming(group.first_head), N, T(0), group_y.data, group_y.stride);
  for (int64_t h = group.first_head; h < group.end_head; ++h) {
    const Strided<const T> x = group.of(args.x, h);
    const Strided<T> y = group.of(args.y, h);
    group.gather(h, dt, cum, entering);
    scale_and_skip(Q, P, entering, args.D.as<T>()[h], x, y);
    weigh_scores(ScanTile<T>{.tokens = Q, .first = first, .dt = dt, .cum = cum}, scores, weights);
    lower_product(Q, P, weights, x, T(1), y);
  }
}

// partial_dD: the chunk's (H).
template <class T>
void group_backward(const ChunkScanBackward& args, int64_t chunk_row, int64_t g, T* partial_dD) {
  const Group<T, ChunkScanBackward> group(args, chunk_row, g);
  const int64_t Q = group.Q, P = group.P, N = group.N;
  TileMemory memory = TileMemory::of<T>(3 * Q * Q + Q * P + Q * N + 6 * Q + Q * 8 / sizeof(T), 12);
  T* const scores = memory.take<T>(Q * Q);
  T* const dscores = memory.take<T>(Q * Q);
  T* const dy_x = memory.take<T>(Q * Q);
  T* const entering_dy = memory.take<T>(Q * P);
  T* const v = memory.take<T>(Q * N);
  T* const dt = memory.take<T>(Q);
  T* const cum = memory.take<T>(Q);
  T* const entering = memory.take<T>(Q);
  T* const row = memory.take<T>(Q);
  T* const ddt = memory.take<T>(Q);
  T* const dcum = memory.take<T>(Q);
  int64_t* const first = memory.take<int64_t>(Q);
  group.find_documents(first);
  const Strided<const T> B = group.of(args.B, g), C = group.of(args.C, g);
  const Strided<T> dC = group.of(args.dC, g);
  lower_scores(Q, N, C, B, scores);
  std::fill_n(dscores, Q * Q, T(0));
  for (int64_t t = 0; t < Q; ++t) std::fill_n(dC.row(t), N, T(0));
  for (int64_t h = group.first_head; h < group.end_head; ++h) {
    const Strided<const T> x = group.of(args.x, h), dy = group.of(args.dy, h);
    const Strided<T> dx = group.of(args.dx, h);
    group.gather(h, dt, cum, entering);
    lower_scores(Q, P, dy, x, dy_x);
    weigh_gradients(ScanTile<T>{.tokens = Q, .first = first, .dt = dt, .cum = cum, .row = row},
                    scores, dy_x, dscores, ddt, dcum);
    upper_product(Q, P, dy_x, dy, dx);
    partial_dD[h] = T(skip_gradients(Q, P, entering, args.D.as<T>()[h], x, dy, dx, entering_dy));
    tile_gemm(false, false, Q, N, P, T(1), entering_dy, P, group.incoming(h), N, T(0), v, N);
    entering_gradients(Q, N, v, C, dC, dcum);
    tile_gemm(true, false, P, N, Q, T(1), entering_dy, P, C.data, C.stride, T(0),
              args.dincoming.row<T>(chunk_row) + h * P * N, N);
    for (int64_t t = 0; t < Q; ++t) {
      args.ddt.row<T>(group.row0 + t)[h] = ddt[t];
      args.dcum.row<T>(group.row0 + t)[h] = dcum[t];
    }
  }
  lower_product(Q, N, dscores, B, T(1), dC);
  upper_product(Q, N, dscores, C, group.of(args.dB, g));
}

}  // namespace

template <class T>
void chunk_scan_tiles_forward(const ChunkScanForward& args) {
  const int64_t chunks = args.incoming.rows(), G = args.B.dim(2);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < chunks * G; ++task) group_forward<T>(args, task / G, task % G);
}

template <class T>
void chunk_scan_tiles_backward(const ChunkScanBackward& args, TensorView partial_dD) {
  const int64_t chunks = args.incoming.rows(), H = args.x.dim(2), G = args.B.dim(2);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < chunks * G; ++task) {
    group_backward<T>(args, task / G, task % G, partial_dD.row<T>(task / G));
  }
  T* const dD = args.dD.as<T>();
  for (int64_t h = 0; h < H; ++h) {
    double sum = 0;
    for (int64_t chunk_row = 0; chunk_row < chunks; ++chunk_row) {
      sum += partial_dD.row<T>(chunk_row)[h];
    }
    dD[h] += T(sum);
  }
}

template void chunk_scan_tiles_forward<float>(const ChunkScanForward&);
template void chunk_scan_tiles_forward<double>(const ChunkScanForward&);
template void chunk_scan_tiles_backward<float>(const ChunkScanBackward&, TensorView);
template void chunk_scan_tiles_backward<double>(const ChunkScanBackward&, TensorView);

}  // namespace sluice::cpu
