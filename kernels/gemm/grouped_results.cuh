// What one warpgroup does with its 64 rows of sums of a grouped product, straight from the
// registers of wgmma. There four neighbouring lanes have two columns each of every eight; here they
// exchange them, rounded to bf16, so that a lane reads and writes 16 bytes: of a row, four lanes
// have 64 bytes.
#pragma once

#include "kernels/device/mma.cuh"
#include "kernels/gemm/grouped_product.cuh"

namespace sluice::cuda {

// A warpgroup's accumulators of 2 kSums columns: warp w of the four has rows 16 w on, and in them
// d[4 j] to d[4 j + 3] belong to columns 8 j on (see wgmma_64x256).

// Two bf16 numbers a word: eight columns of a row.
struct Eight {
  uint32_t words[4];

  __device__ static Eight load(const Bf16* from) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    return {{all.x, all.y, all.z, all.w}};
  }
  __device__ void store(Bf16* to) const {
    *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
  }
  // What nobody reads again soon, for which the L2 cache shall forget nothing else.
  __device__ static Eight load_once(const Bf16* from) {
    const uint4 all = __ldcs(reinterpret_cast<const uint4*>(from));
    return {{all.x, all.y, all.z, all.w}};
  }
  __device__ void store_once(Bf16* to) const {
    __stcs(reinterpret_cast<uint4*>(to), uint4{words[0], words[1], words[2], words[3]});
  }
};

// From lane q of four neighbours having word q of blocks 0 to 3, to its having block q.
__device__ inline Eight transpose_four(Eight own) {
  uint32_t(&w)[4] = own.words;
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      uint32_t &low = w[i], &high = w[i | bit];
      const uint32_t other = __shfl_xor_sync(kFullWarp, upper ? low : high, bit);
      (upper ? low : high) = other;
    }
  }
  return own;
}

// Columns 8 (j + q) to 8 (j + q) + 7 for the q-th lane of four, j a multiple of 4. half 0: row r of
// the warp's 16, half 1: row r + 8; r = lane / 4.
template <int kSums>
__device__ Eight eight_of(const float (&d)[kSums], int j, int half) {
  Eight own;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    own.words[i] = pack_bf16(d[4 * (j + i) + 2 * half], d[4 * (j + i) + 2 * half + 1]);
  return transpose_four(own);
}

// The first of a lane's eight columns, and its row in the warpgroup's 64.
__device__ inline int column_of(int j) { return 8 * (j + int(threadIdx.x) % 4); }
__device__ inline int row_of(int half) {
  return int(threadIdx.x) % 128 / kWarp * 16 + int(threadIdx.x) % kWarp / 4 + 8 * half;
}

// A function of neighbouring columns, number by number.
template <class Function>
__device__ uint32_t map_word(const Function& function) {
  return pack_bf16(function(0), function(1));
}
__device__ inline float part(uint32_t word, int i) {
  const float2 both = unpack_bf16(word);
  return i == 0 ? both.x : both.y;
}

// C = sums + beta C: added in f32 to the sum already rounded, as if the product had been stored.
template <int kSums>
__device__ void store_sums(const float (&d)[kSums], const GroupedProduct& p, int64_t first,
                           const GroupedTile& tile) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t m = first + row_of(half);
    Bf16* const c = static_cast<Bf16*>(p.c) + m * p.c_stride;
#pragma unroll
    for (int j = 0; j < kSums / 4; j += 4) {
      Eight sums = eight_of(d, j, half);
      const int64_t n = tile.n + column_of(j);
      if (m >= tile.m_end || n >= p.N) continue;
      if (p.beta != 0) {
        const Eight old = Eight::load(c + n);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums.words[i] = map_word(
              [&](int at) { return part(sums.words[i], at) + p.beta * part(old.words[i], at); });
        }
      }
      sums.store(c + n);
    }
  }
}

// C = 0 in f32: a warpgroup's 64 rows of a tile of kColumns.
template <int kColumns>
__device__ void store_zeros_f32(const GroupedProduct& p, int64_t first, const GroupedTile& tile) {
  constexpr int kPieces = kColumns / 4;
  for (int i = int(threadIdx.x) % 128; i < 64 * kPieces; i += 128) {
    const int64_t m = first + i / kPieces, n = tile.n + i % kPieces * 4;
    if (m >= tile.m_end || n >= p.N) continue;
    float* const c = static_cast<float*>(p.c) + tile.group * p.c_group + m * p.c_stride + n;
    *reinterpret_cast<float4*>(c) = {0, 0, 0, 0};
  }
}

}  // namespace sluice::cuda
