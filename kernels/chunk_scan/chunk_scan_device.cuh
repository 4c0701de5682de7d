// What the kernels of chunk_scan are given, and where a chunk lies.
// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
#pragma once

#include "kernels/chunk_scan/chunk_scan_cuda.h"
#include "kernels/core/chunks.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"

namespace sluice::cuda {

// Rows of a tensor, `stride` elements apart.
template <class T>
struct RowsOf {
  T* data;
  int64_t stride;
  __device__ T* row(int64_t index) const { return data + index * stride; }
};

template <class T>
RowsOf<const T> rows_of(const ConstTensorView& view) {
  return {pointer<T>(view), view.row_stride};
}
template <class T>
RowsOf<T> rows_of(const TensorView& view) {
  return {pointer<T>(view), view.row_stride};
}

// The inputs that forward and backward share.
template <class T>
struct ScanInputs {
  RowsOf<const T> x, B, C, incoming;
  RowsOf<const float> dt, cum;
  RowsOf<const int32_t> doc_begin;
  const float* D;
  int64_t tokens, chunk;
  int chunks_per_row, chunk_rows, heads, groups, head_dim, state_dim;

  __host__ __device__ int group_heads() const { return heads / groups; }
};

template <class T, class Args>
ScanInputs<T> scan_inputs(const Args& args) {
  return {.x = rows_of<T>(args.x),
          .B = rows_of<T>(args.B),
          .C = rows_of<T>(args.C),
          .incoming = rows_of<T>(args.incoming),
          .dt = rows_of<float>(args.dt),
          .cum = rows_of<float>(args.cum),
          .doc_begin = rows_of<int32_t>(args.doc_begin),
          .D = pointer<float>(args.D),
          .tokens = args.x.dim(1),
          .chunk = args.chunk,
          .chunks_per_row = int(args.incoming.dim(1)),
          .chunk_rows = int(args.incoming.rows()),
          .heads = int(args.x.dim(2)),
          .groups = int(args.B.dim(2)),
          .head_dim = int(args.x.dim(3)),
          .state_dim = int(args.B.dim(3))};
}

// Where a chunk lies. Its tokens count from 0.
struct ChunkPlace {
  int64_t row0;              // its first token's row of x
  int64_t begin;             // its first token, of the batch row
  int size;                  // its tokens
  const int32_t* doc_begin;  // its first token's

  template <class T>
  __device__ ChunkPlace(const ScanInputs<T>& in, int64_t chunk_row) {
    const int64_t batch_row = chunk_row / in.chunks_per_row;
    begin = chunk_row % in.chunks_per_row * in.chunk;
    size = int(min(in.chunk, in.tokens - begin));
    row0 = batch_row * in.tokens + begin;
    doc_begin = in.doc_begin.row(batch_row) + begin;
  }
  // The first token of the chunk that t sees.
  __device__ int first_seen(int t) const { return int(max(int64_t(0), doc_begin[t] - begin)); }
  // Whether t sees the incoming state.
  __device__ bool enters(int t) const { return doc_begin[t] < begin; }
};

// Takes indices out of a block's number, the fastest first.
struct BlockIndex {
  int64_t rest;
  __device__ explicit BlockIndex(int64_t block) : rest(block) {}
  __device__ int take(int64_t count) {
    const int64_t index = rest % count;
    rest /= count;
    return int(index);
  }
};

// --- The plain path (any shape, f32 and bf16) and the tensor cores' ------------------------------

template <class T>
void plain_scan_forward(const Context& ctx, const ChunkScanForward& args);
template <class T>
void plain_scan_backward(const Context& ctx, const ChunkScanBackward& args,
                         const ChunkScanPartials& partials);

// dD += the first `rows` rows of partial, in order.
void add_partial_dD(const Context& ctx, const ConstTensorView& partial, int64_t rows,
                    const TensorView& dD);

}  // namespace sluice::cuda
