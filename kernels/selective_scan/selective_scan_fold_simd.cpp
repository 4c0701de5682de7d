// Float folds of the selective scan, token by token with the channels of a block on the SIMD lanes.

#include "kernels/selective_scan/selective_scan_lanes.h"

namespace sluice::cpu {

namespace {

struct Tile {
  std::vector<Lanes> A2;     // (N): A log2(e), so that a = 2^(dt A2)
  std::vector<Lanes> state;  // (N): h, or the gradient of h[t-1]
  Lanes dt_bias;
};

template <class Args>
[[gnu::always_inline]] inline void load_tile(const Args& args, int64_t first, int64_t width,
                                             Tile& tile) {
  load_lanes(args.dt_bias.template as<float>() + first, width, tile.dt_bias.at);
  load_exponents(args.A_log, first, width, tile.A2);
  tile.state.resize(args.A_log.dim(1));
  clear(tile.state);
}

// (Under GCC 12's ThreadSanitizer the resolver of clones crashes.)
#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void fold_block(const SelectiveScanFold& args, int64_t b, int64_t block, Tile& tile) {
  const int64_t tokens = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  const int64_t first = block * L, width = std::min(L, E - first);
  load_tile(args, first, width, tile);
  Lanes dt_sum{}, dt, dt_u;
  for (int64_t t = last_document(args.doc_begin, b); t < tokens; ++t) {
    const int64_t row = b * tokens + t;
    prefetch(args.u, row + kScanSpan, first);
    prefetch(args.delta, row + kScanSpan, first);
    load_lanes(args.delta.row<float>(row) + first, width, dt.at);
    load_lanes(args.u.row<float>(row) + first, width, dt_u.at);
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) {
      dt.at[l] = fast_softplus(dt.at[l] + tile.dt_bias.at[l]);
      dt_u.at[l] *= dt.at[l];
      dt_sum.at[l] += dt.at[l];
    }
    const float* const B = args.B.row<float>(row);
    for (int64_t n = 0; n < N; ++n) {
      const float* const __restrict A2 = tile.A2[n].at;
      float* const __restrict h = tile.state[n].at;
      const float input = B[n];
#pragma omp simd
      for (int64_t l = 0; l < L; ++l) {
        h[l] = fast_exp2_decay(dt.at[l] * A2[l]) * h[l] + dt_u.at[l] * input;
      }
    }
  }
  store_states(tile.state, width, args.state.row<float>(b * E + first));
  store_lanes(dt_sum.at, width, args.dt_sum.row<float>(b) + first);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void reverse_fold_block(const SelectiveScanReverseFold& args, int64_t b, int64_t block,
                        Tile& tile) {
  const int64_t tokens = args.dy.dim(1), E = args.dy.dim(2), N = args.A_log.dim(1);
  const int64_t first = block * L, width = std::min(L, E - first);
  load_tile(args, first, width, tile);
  Lanes dt, dsum, z;
  for (int64_t t = first_start(args.doc_begin, b) - 1; t >= 0; --t) {
    const int64_t row = b * tokens + t;
    for (const ConstTensorView& wanted : {args.dy, args.delta, args.z}) {
      prefetch(wanted, row - kScanSpan, first);
    }
    load_lanes(args.delta.row<float>(row) + first, width, dt.at);
    load_lanes(args.dy.row<float>(row) + first, width, dsum.at);
    if (args.z) {
      load_lanes(args.z.row<float>(row) + first, width, z.at);
#pragma omp simd
      for (int64_t l = 0; l < L; ++l) dsum.at[l] *= fast_silu(z.at[l]);
    }
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) dt.at[l] = fast_softplus(dt.at[l] + tile.dt_bias.at[l]);
    const float* const C = args.C.row<float>(row);
    for (int64_t n = 0; n < N; ++n) {
      const float* const __restrict A2 = tile.A2[n].at;
      float* const __restrict carried = tile.state[n].at;
      const float output = C[n];
#pragma omp simd
      for (int64_t l = 0; l < L; ++l) {
        carried[l] = fast_exp2_decay(dt.at[l] * A2[l]) * (carried[l] + output * dsum.at[l]);
      }
    }
  }
  store_states(tile.state, width, args.dinitial_state.row<float>(b * E + first));
}

}  // namespace

void selective_scan_fold_simd(const SelectiveScanFold& args) {
  for_each_block<Tile>(args.u.dim(0), args.u.dim(2), [&](int64_t b, int64_t block, Tile& tile) {
    fold_block(args, b, block, tile);
  });
}

void selective_scan_reverse_fold_simd(const SelectiveScanReverseFold& args) {
  for_each_block<Tile>(args.dy.dim(0), args.dy.dim(2), [&](int64_t b, int64_t block, Tile& tile) {
    reverse_fold_block(args, b, block, tile);
  });
}

}  // namespace sluice::cpu
