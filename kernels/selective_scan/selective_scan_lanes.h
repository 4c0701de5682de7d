// The channels of a block on the SIMD lanes: what the float paths of selective_scan share.
// L is kScanBlock; a block beyond the last channel is filled up with zeros, which stay zero.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/core/fast_math.h"
#include "kernels/selective_scan/selective_scan_cpu.h"

namespace sluice::cpu {

inline constexpr int64_t L = kScanBlock;

// One number for every channel of a block.
struct alignas(64) Lanes {
  float at[L];
};

[[gnu::always_inline]] inline void load_lanes(const float* from, int64_t width, float* to) {
  for (int64_t l = 0; l < width; ++l) to[l] = from[l];
  for (int64_t l = width; l < L; ++l) to[l] = 0;
}

[[gnu::always_inline]] inline void store_lanes(const float* from, int64_t width, float* to) {
  for (int64_t l = 0; l < width; ++l) to[l] = from[l];
}

// A block's part of a row is short and the rows lie far apart, which the hardware does not foresee:
// asks for the row that is wanted one span later.
[[gnu::always_inline]] inline void prefetch(const ConstTensorView& view, int64_t row,
                                            int64_t first) {
  if (!view || row < 0 || row >= view.rows()) return;
  const float* const wanted = view.row<float>(row) + first;
  for (int64_t l = 0; l < L; l += 16) __builtin_prefetch(wanted + l, 0, 2);
}

// States lie as (E, N) in memory and as (N, L) here.
[[gnu::always_inline]] inline void load_states(const float* from, int64_t width,
                                               std::vector<Lanes>& to) {
  const int64_t N = int64_t(to.size());
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t l = 0; l < L; ++l) to[n].at[l] = l < width ? from[l * N + n] : 0.0f;
  }
}

[[gnu::always_inline]] inline void store_states(const std::vector<Lanes>& from, int64_t width,
                                                float* to) {
  const int64_t N = int64_t(from.size());
  for (int64_t l = 0; l < width; ++l) {
    for (int64_t n = 0; n < N; ++n) to[l * N + n] = from[n].at[l];
  }
}

inline void clear(std::vector<Lanes>& lanes) { std::fill(lanes.begin(), lanes.end(), Lanes{}); }

// A log2(e) of a block as (N, L), so that a = 2^(dt A2).
[[gnu::always_inline]] inline void load_exponents(const ConstTensorView& A_log, int64_t first,
                                                  int64_t width, std::vector<Lanes>& A2) {
  A2.resize(A_log.dim(1));
  load_states(A_log.row<float>(first), width, A2);
  for (Lanes& lanes : A2) {
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) lanes.at[l] = -fast_exp(lanes.at[l]) * detail::kLog2E;
  }
}

// body(b, block, tile) for every block of channels of every row; a thread has one Tile.
template <class Tile, class Body>
void for_each_block(int64_t batch, int64_t channels, const Body& body) {
  const int64_t blocks = scan_blocks(channels);
#pragma omp parallel
  {
    const auto tile = std::make_unique<Tile>();
#pragma omp for schedule(static) collapse(2)
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t block = 0; block < blocks; ++block) body(b, block, *tile);
    }
  }
}

}  // namespace sluice::cpu
