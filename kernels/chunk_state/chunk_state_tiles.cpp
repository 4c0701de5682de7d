// chunk_state through matrix products: per chunk and head, the tokens of the last document, weighed
// by their decay to the chunk's end, times B.
// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
#include <algorithm>
#include <cmath>

#include "kernels/chunk_state/chunk_state_cpu.h"
#include "kernels/chunk_state/chunk_state_tile.h"
#include "kernels/core/chunks.h"
#include "kernels/core/tile_memory.h"
#include "kernels/gemm/blas.h"

namespace sluice::cpu {
namespace {

// The tokens of a chunk that its outgoing state sees: those of the document that is open at its
// end.
struct OpenTokens {
  int64_t row0 = 0;   // of the first, among B * T
  int64_t count = 0;  // at least 1
  bool starts_inside = false;

  template <class Args>
  OpenTokens(const Args& args, int64_t chunk_row) {
    const int64_t tokens = args.x.dim(1), M = num_chunks(tokens, args.chunk), b = chunk_row / M;
    const ChunkSpan span(chunk_row % M, args.chunk, tokens);
    const int64_t document = args.doc_begin.template row<int32_t>(b)[span.end - 1];
    const int64_t begin = std::max(span.begin, document);
    row0 = b * tokens + begin;
    count = span.end - begin;
    starts_inside = document >= span.begin;
  }
};

// decay[s] = exp(cum[last] - cum[s]);   weight[s] = decay[s] dt[s]
template <class T, class Args>
void weigh_tokens(const Args& args, const OpenTokens& open, int64_t h, T* decay, T* weight) {
  const T cum_last = args.cum.template row<T>(open.row0 + open.count - 1)[h];
  for (int64_t s = 0; s < open.count; ++s) {
    decay[s] = std::exp(cum_last - args.cum.template row<T>(open.row0 + s)[h]);
    weight[s] = decay[s] * args.dt.template row<T>(open.row0 + s)[h];
  }
}

template <class T>
void head_forward(const ChunkStateForward& args, int64_t chunk_row, int64_t h) {
  const int64_t H = args.x.dim(2), P = args.x.dim(3), G = args.B.dim(2), N = args.B.dim(3);
  const OpenTokens open(args, chunk_row);
  TileMemory memory = TileMemory::of<T>(open.count * (P + 2), 3);
  T* const weighed_x = memory.take<T>(open.count * P);
  T* const decay = memory.take<T>(open.count);
  T* const weight = memory.take<T>(open.count);
  weigh_tokens(args, open, h, decay, weight);
  weigh_rows(open.count, P, weight, args.x.row<T>(open.row0) + h * P, args.x.row_stride, weighed_x);
  tile_gemm(true, false, P, N, open.count, T(1), weighed_x, P,
            args.B.row<T>(open.row0) + h * G / H * N, args.B.row_stride, T(0),
            args.state.row<T>(chunk_row) + h * P * N, N);
  const T cum_last = args.cum.row<T>(open.row0 + open.count - 1)[h];
  args.decay.row<T>(chunk_row)[h] = open.starts_inside ? T(0) : std::exp(cum_last);
}

// The heads of a group share dB: in order.
template <class T>
void group_backward(const ChunkStateBackward& args, int64_t chunk_row, int64_t g) {
  const int64_t H = args.x.dim(2), P = args.x.dim(3), G = args.B.dim(2), N = args.B.dim(3);
  const OpenTokens open(args, chunk_row);
  const int64_t last = open.row0 + open.count - 1;
  TileMemory memory = TileMemory::of<T>(open.count * (P + 3), 4);
  T* const rows = memory.take<T>(open.count * P);  // dstate B, then weighed x
  T* const decay = memory.take<T>(open.count);
  T* const weight = memory.take<T>(open.count);
  T* const dot = memory.take<T>(open.count);
  const T* const B = args.B.row<T>(open.row0) + g * N;
  T* const dB = args.dB.row<T>(open.row0) + g * N;
  for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
    const T* const x = args.x.row<T>(open.row0) + h * P;
    const T* const dstate = args.dstate.row<T>(chunk_row) + h * P * N;
    weigh_tokens(args, open, h, decay, weight);
    tile_gemm(false, true, open.count, P, N, T(1), B, args.B.row_stride, dstate, N, T(0), rows, P);
    add_weighed_rows(open.count, P, weight, rows, x, args.x.row_stride,
                     args.dx.row<T>(open.row0) + h * P, args.dx.row_stride, dot);
    weigh_rows(open.count, P, weight, x, args.x.row_stride, rows);
    tile_gemm(false, false, open.count, N, P, T(1), rows, P, dstate, N, T(1), dB,
              args.dB.row_stride);
    double dcum_last = args.dlog_decay.row<T>(chunk_row)[h];
    for (int64_t s = 0; s < open.count; ++s) {
      args.ddt.row<T>(open.row0 + s)[h] += decay[s] * dot[s];
      if (open.row0 + s == last) continue;  // exp(0): no share, not even of rounding
      args.dcum.row<T>(open.row0 + s)[h] -= weight[s] * dot[s];
      dcum_last += weight[s] * dot[s];
    }
    args.dcum.row<T>(last)[h] += T(dcum_last);
  }
}

}  // namespace

template <class T>
void chunk_state_tiles_forward(const ChunkStateForward& args) {
  const int64_t chunks = args.state.rows(), H = args.x.dim(2);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < chunks * H; ++task) head_forward<T>(args, task / H, task % H);
}

template <class T>
void chunk_state_tiles_backward(const ChunkStateBackward& args) {
  const int64_t chunks = args.dstate.rows(), G = args.B.dim(2);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < chunks * G; ++task) group_backward<T>(args, task / G, task % G);
}

template void chunk_state_tiles_forward<float>(const ChunkStateForward&);
template void chunk_state_tiles_forward<double>(const ChunkStateForward&);
template void chunk_state_tiles_backward<float>(const ChunkStateBackward&);
template void chunk_state_tiles_backward<double>(const ChunkStateBackward&);

}  // namespace sluice::cpu
