// What the kernels of chunk_scan's backward through pairs share.
#pragma once

#include "kernels/chunk_scan/chunk_scan_tensor.cuh"

namespace sluice::cuda {

// Sums over the rows of a 16 x 16 square, of which a lane has columns 2 pair, 2 pair + 1 and these
// + 8: returns the sum of column summed_column() on every lane.
__device__ inline float sum_rows(const float (&columns)[4]) {
  const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
  float keep[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sent = upper ? columns[i] : columns[2 + i];
    keep[i] = (upper ? columns[2 + i] : columns[i]) + __shfl_xor_sync(0xffffffffu, sent, 16);
  }
  float sum = (odd ? keep[1] : keep[0]) + __shfl_xor_sync(0xffffffffu, odd ? keep[0] : keep[1], 8);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 4);
}
__device__ inline int summed_column() {
  const int lane = threadIdx.x % 32;
  return lane / 16 * 8 + lane % 4 * 2 + lane / 8 % 2;
}

__device__ inline float pair_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// sum += a (rows k0 .. k0 + 15 of a tile)
template <int kState>
__device__ void add_rows(Accumulator (&sum)[kState / kMmaN], const FragmentA& a,
                         const SharedTile<kState>& tile, int k0) {
#pragma unroll
  for (int n = 0; n < kState / kMmaN; n += 2) {
    const FragmentPairB b = load_b_transposed(tile.from_row(k0), n * kMmaN, 0);
    mma(sum[n], a, b.halves[0]);
    mma(sum[n + 1], a, b.halves[1]);
  }
}

// A strip of dB or dC to memory: of one split, or, where `whole` is given, of all there is.
template <int kTiles>
__device__ void write_strip_sum(const Accumulator (&sum)[kTiles], const ScanGradients& to,
                                RowsOf<float> parts, RowsOf<Bf16> whole, const ChunkPlace& place,
                                int group, int split, int strip) {
  const int64_t column = int64_t(group) * kTiles * kMmaN + Accumulator::column(0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = strip * kStrip + Accumulator::row(2 * half);
    if (token >= place.size) continue;
    const int64_t row = place.row0 + token;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float left = sum[n].values[2 * half], right = sum[n].values[2 * half + 1];
      if (whole.data == nullptr) {
        float* const out = parts.row(split * to.all_tokens + row) + column + n * kMmaN;
        *reinterpret_cast<float2*>(out) = make_float2(left, right);
      } else {
        *reinterpret_cast<uint32_t*>(whole.row(row) + column + n * kMmaN) = pack_bf16(left, right);
      }
    }
  }
}

}  // namespace sluice::cuda
