// Products of matrices of any shape by one block, in f32 on the plain cores: what the plain path of
// chunk_scan is made of. A block of 16 x 16 threads makes a tile of 64 x 64; its operands are
// functions of their indices (which mask and scale as they read) and pass through shared memory 16
// deep.
#pragma once

#include "kernels/chunk_scan/chunk_scan_device.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

constexpr int kPlainThreads = 256;
constexpr int kTile = int(kScanTile);
constexpr int kSide = 16;             // threads along a side of a tile
constexpr int kEach = kTile / kSide;  // rows, and columns, of a thread
constexpr int kDepth = 16;

// A thread's elements of a tile: rows row(r), columns column(c).
struct PlainTile {
  float values[kEach][kEach] = {};

  __device__ static int row(int r) { return int(threadIdx.x) / kSide + r * kSide; }
  __device__ static int column(int c) { return int(threadIdx.x) % kSide + c * kSide; }

  // body(value, row, column) on each.
  template <class Body>
  __device__ void for_each(Body body) {
#pragma unroll
    for (int r = 0; r < kEach; ++r)
#pragma unroll
      for (int c = 0; c < kEach; ++c) body(values[r][c], row(r), column(c));
  }
};

// What a block's products pass through.
struct PlainRoom {
  float a[kDepth][kTile + 1];
  float b[kDepth][kTile + 1];
  float tile[kTile][kTile + 1];  // the block's own
};

// Which index of an operand walks through neighbouring addresses.
enum class Neighbours { along_depth, across };

template <Neighbours kNeighbours, class Read>
__device__ void fill_slab(float (&slab)[kDepth][kTile + 1], int64_t k0, int64_t depth, Read read) {
#pragma unroll
  for (int e = threadIdx.x; e < kDepth * kTile; e += kPlainThreads) {
    const bool along = kNeighbours == Neighbours::along_depth;
    const int k = along ? e % kDepth : e / kTile, i = along ? e / kDepth : e % kTile;
    slab[k][i] = k0 + k < depth ? read(i, int(k0 + k)) : 0.0f;
  }
}

// out[i][j] += sum over k < depth of a(i, k) b(j, k). a and b are asked for every i, j < 64 and
// answer 0 where there is nothing.
template <Neighbours kA, Neighbours kB, class ReadA, class ReadB>
__device__ void multiply(PlainRoom& room, PlainTile& out, int64_t depth, ReadA a, ReadB b) {
  for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
    __syncthreads();
    fill_slab<kA>(room.a, k0, depth, a);
    fill_slab<kB>(room.b, k0, depth, b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float left[kEach], right[kEach];
#pragma unroll
      for (int r = 0; r < kEach; ++r) left[r] = room.a[k][PlainTile::row(r)];
#pragma unroll
      for (int c = 0; c < kEach; ++c) right[c] = room.b[k][PlainTile::column(c)];
#pragma unroll
      for (int r = 0; r < kEach; ++r)
#pragma unroll
        for (int c = 0; c < kEach; ++c) out.values[r][c] += left[r] * right[c];
    }
  }
}

// Rows first .. first + 63 of a matrix with `rows` rows, of which columns [0, width) count: an
// operand whose depth is the columns.
template <class T>
struct ReadRows {
  RowsOf<const T> matrix;
  int first, rows, width;
  __device__ float operator()(int i, int k) const {
    return first + i < rows && k < width ? to_float(matrix.row(first + i)[k]) : 0.0f;
  }
};
// Columns of the same: an operand whose depth is the rows.
template <class T>
struct ReadColumns {
  RowsOf<const T> matrix;
  int first, rows, width;
  __device__ float operator()(int j, int k) const {
    return k < rows && first + j < width ? to_float(matrix.row(k)[first + j]) : 0.0f;
  }
};

// The sum of a row's values over its 16 threads, on each of them.
__device__ inline float row_sum(float value) { return warp_sum<kSide>(value); }

// One head of a chunk.
template <class T>
struct PlainHead {
  ChunkPlace place;
  int head, P, N;
  RowsOf<const T> x, B, C, incoming;
  RowsOf<const float> dt, cum;
  float D;

  __device__ PlainHead(const ScanInputs<T>& in, int64_t chunk_row, int head)
      : place(in, chunk_row), head(head), P(in.head_dim), N(in.state_dim), D(in.D[head]) {
    const int64_t row0 = place.row0, group = head / in.group_heads();
    x = {in.x.row(row0) + int64_t(head) * P, in.x.stride};
    B = {in.B.row(row0) + group * N, in.B.stride};
    C = {in.C.row(row0) + group * N, in.C.stride};
    dt = {in.dt.row(row0) + head, in.dt.stride};
    cum = {in.cum.row(row0) + head, in.cum.stride};
    incoming = {in.incoming.row(chunk_row) + int64_t(head) * P * N, N};
  }
  __device__ bool sees(int t, int s) const {
    return t < place.size && s <= t && s >= place.first_seen(t);
  }
  __device__ float decay(int t, int s) const { return expf(*cum.row(t) - *cum.row(s)); }
  // From the chunk's start to t, 0 where t does not see the incoming state.
  __device__ float entering(int t) const {
    return t < place.size && place.enters(t) ? expf(*cum.row(t)) : 0.0f;
  }
};

}  // namespace sluice::cuda
