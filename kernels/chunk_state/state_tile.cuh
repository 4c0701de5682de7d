// A part of a head's state, 64 rows of P and kColumns of N, in the registers of a warpgroup: the
// sums of its products, f32.
#pragma once

#include "kernels/device/panel_tile.cuh"

namespace sluice::cuda {

template <int kColumns>
struct StateTile {
  static constexpr int kCount = kColumns / kMmaN;
  Accumulator acc[kCount];

  __device__ void scale(float factor) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n].values[i] *= factor;
    }
  }
  // Of values[2 * half].
  static __device__ int row(int half) {
    return warpgroup_warp() * kMmaM + Accumulator::row(2 * half);
  }
  // `to` and `from` point at the part's beginning in a head's state, whose rows have N columns.
  __device__ void store(float* to, int64_t N) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const out = to + row(half) * N + Accumulator::column(0);
#pragma unroll
      for (int n = 0; n < kCount; ++n)
        *reinterpret_cast<float2*>(out + n * kMmaN) =
            make_float2(acc[n].values[2 * half], acc[n].values[2 * half + 1]);
    }
  }
  __device__ void store(Bf16* to, int64_t N) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Bf16* const out = to + row(half) * N + threadIdx.x % 4 * kMmaN;
#pragma unroll
      for (int n = 0; n < kCount; n += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          words[i] = pack_bf16(acc[n + i].values[2 * half], acc[n + i].values[2 * half + 1]);
        *reinterpret_cast<uint4*>(out + n * kMmaN) = gather_quad(words);
      }
    }
  }
  __device__ void store(const PanelTile<64, kColumns>& to) const {
#pragma unroll
    for (int n = 0; n < kCount; n += 2)
      store_a(to, warpgroup_warp() * kMmaM, n * kMmaN, fragment_a(acc[n], acc[n + 1]));
  }
  __device__ void load(const float* from, int64_t N) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const in = from + row(i / 2) * N + Accumulator::column(i);
#pragma unroll
      for (int n = 0; n < kCount; ++n) acc[n].values[i] = in[n * kMmaN];
    }
  }
};

}  // namespace sluice::cuda
