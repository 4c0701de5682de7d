// Float selective scan with the channels of a block on the SIMD lanes, a span of tokens at a time.
#include <algorithm>
#include <vector>

#include "kernels/selective_scan/selective_scan_lanes.h"

namespace sluice::cpu {

namespace {

constexpr float kLn2 = 0x1.62e43p-1f;

// One number for every token of a span and channel of a block.
struct alignas(64) Span {
  float at[kScanSpan][L];
};

// What both directions hold of a block and one of its spans.
struct Block {
  int64_t b = 0;
  int64_t first = 0;  // channel
  int64_t width = 0;  // channels that exist
  int64_t begin = 0;  // the span's tokens
  int64_t end = 0;
  Lanes dt_bias, D;
  std::vector<Lanes> A2;  // (N): A log2(e), so that a = 2^(dt A2)
  Span u, dt, dt_u, z;
  Span slope;  // d dt / d delta
  Span sum;    // sum_n C h + D u
};

template <class Args>
[[gnu::always_inline]] inline void load_block(const Args& args, int64_t b, int64_t block,
                                              Block& k) {
  k.b = b;
  k.first = block * L;
  k.width = std::min(L, args.u.dim(2) - k.first);
  load_lanes(args.dt_bias.template as<float>() + k.first, k.width, k.dt_bias.at);
  load_lanes(args.D.template as<float>() + k.first, k.width, k.D.at);
  load_exponents(args.A_log, k.first, k.width, k.A2);
}

// dt and dt u of a span, and z as it is.
template <class Args>
[[gnu::always_inline]] inline void load_span(const Args& args, int64_t span, Block& k) {
  const int64_t tokens = args.u.dim(1);
  k.begin = span * kScanSpan;
  k.end = std::min(tokens, k.begin + kScanSpan);
  for (int64_t t = k.begin; t < k.end; ++t) {
    const int64_t row = k.b * tokens + t, i = t - k.begin;
    float* const u = k.u.at[i];
    float* const dt = k.dt.at[i];
    load_lanes(args.u.template row<float>(row) + k.first, k.width, u);
    load_lanes(args.delta.template row<float>(row) + k.first, k.width, dt);
    if (args.z) load_lanes(args.z.template row<float>(row) + k.first, k.width, k.z.at[i]);
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) {
      const SoftplusF softplus = fast_softplus_slope(dt[l] + k.dt_bias.at[l]);
      dt[l] = softplus.value;
      k.slope.at[i][l] = softplus.slope;
      k.dt_u.at[i][l] = dt[l] * u[l];
      k.sum.at[i][l] = k.D.at[l] * u[l];
    }
  }
}

template <class Args>
[[gnu::always_inline]] inline bool starts_document(const Args& args, const Block& k, int64_t t) {
  return args.doc_begin.template row<int32_t>(k.b)[t] == t;
}

[[gnu::always_inline]] inline void scan_token(const float* __restrict B, const float* __restrict C,
                                              Block& k, int64_t i, Lanes* __restrict h) {
  const float* const __restrict dt = k.dt.at[i];
  const float* const __restrict dt_u = k.dt_u.at[i];
  float* const __restrict sum = k.sum.at[i];
  for (size_t n = 0; n < k.A2.size(); ++n) {
    const float* const __restrict A2 = k.A2[n].at;
    const float input = B[n], output = C[n];
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) {
      const float state = fast_exp2_decay(dt[l] * A2[l]) * h[n].at[l] + dt_u[l] * input;
      h[n].at[l] = state;
      sum[l] += output * state;
    }
  }
}

struct ForwardTile {
  Block k;
  std::vector<Lanes> h;  // (N)
};

// (Under GCC 12's ThreadSanitizer the resolver of clones crashes.)
#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void forward_block(const SelectiveScanForward& args, int64_t b, int64_t block, ForwardTile& tile) {
  const int64_t tokens = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  Block& k = tile.k;
  load_block(args, b, block, k);
  tile.h.resize(N);
  clear(tile.h);
  if (args.initial_state) {
    load_states(args.initial_state.row<float>(b * E + k.first), k.width, tile.h);
  }
  for (int64_t span = 0; span < scan_spans(tokens); ++span) {
    if (args.span_states) {
      float* const kept = args.span_states.row<float>(b * scan_spans(tokens) + span);
      store_states(tile.h, k.width, kept + k.first * N);
    }
    load_span(args, span, k);
    for (int64_t t = k.begin; t < k.end; ++t) {
      const int64_t row = b * tokens + t, i = t - k.begin;
      for (const ConstTensorView& wanted : {args.u, args.delta, args.z, ConstTensorView(args.y)}) {
        prefetch(wanted, row + kScanSpan, k.first);
      }
      if (starts_document(args, k, t)) clear(tile.h);
      scan_token(args.B.row<float>(row), args.C.row<float>(row), k, i, tile.h.data());
      float* const sum = k.sum.at[i];
      if (args.z) {
#pragma omp simd
        for (int64_t l = 0; l < L; ++l) sum[l] *= fast_silu(k.z.at[i][l]);
      }
      store_lanes(sum, k.width, args.y.row<float>(row) + k.first);
    }
  }
  if (args.final_state) {
    store_states(tile.h, k.width, args.final_state.row<float>(b * E + k.first));
  }
}

struct BackwardTile {
  Block k;
  std::vector<Lanes> h;         // (kScanSpan + 1, N): h before the span, then after every token
  std::vector<Lanes> a;         // (kScanSpan, N)
  std::vector<Lanes> carried;   // (N): gradient of h[t-1] through h[t]
  std::vector<Lanes> dA;        // (N): in units of A
  std::vector<Lanes> incoming;  // (N): h before the span
  Lanes ddt_bias, dD;
  Span dsum;  // gradient of sum
};

// Like scan_token, but keeps every state and decay.
[[gnu::always_inline]] inline void recompute_token(const float* __restrict B,
                                                   const float* __restrict C, bool start, int64_t i,
                                                   BackwardTile& tile) {
  Block& k = tile.k;
  const int64_t N = int64_t(k.A2.size());
  const float* const __restrict dt = k.dt.at[i];
  const float* const __restrict dt_u = k.dt_u.at[i];
  float* const __restrict sum = k.sum.at[i];
  const float keep = start ? 0.0f : 1.0f;
  for (int64_t n = 0; n < N; ++n) {
    const float* const __restrict A2 = k.A2[n].at;
    const float* const __restrict before = tile.h[i * N + n].at;
    float* const __restrict h = tile.h[(i + 1) * N + n].at;
    float* const __restrict a = tile.a[i * N + n].at;
    const float input = B[n], output = C[n];
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) {
      a[l] = keep * fast_exp2_decay(dt[l] * A2[l]);
      h[l] = a[l] * before[l] + dt_u[l] * input;
      sum[l] += output * h[l];
    }
  }
}

// Through y = sum * silu(z): fills dsum, writes dz and y.
[[gnu::always_inline]] inline void gate_token(const SelectiveScanBackward& args, int64_t i,
                                              BackwardTile& tile) {
  Block& k = tile.k;
  const int64_t row = k.b * args.u.dim(1) + k.begin + i;
  float* const sum = k.sum.at[i];
  float* const dsum = tile.dsum.at[i];
  load_lanes(args.dy.row<float>(row) + k.first, k.width, dsum);
  if (args.z) {
    Lanes dz;
#pragma omp simd
    for (int64_t l = 0; l < L; ++l) {
      const float z = k.z.at[i][l];
      const float sigmoid = fast_sigmoid(z);
      dz.at[l] = dsum[l] * sum[l] * silu_slope(z, sigmoid);
      sum[l] *= z * sigmoid;
      dsum[l] *= z * sigmoid;
    }
    store_lanes(dz.at, k.width, args.dz.row<float>(row) + k.first);
  }
  if (args.y) store_lanes(sum, k.width, args.y.row<float>(row) + k.first);
#pragma omp simd
  for (int64_t l = 0; l < L; ++l) tile.dD.at[l] += dsum[l] * k.u.at[i][l];
}

[[gnu::always_inline]] inline void walk_back(const SelectiveScanBackward& args,
                                             const ScanPartials& partials, int64_t i,
                                             BackwardTile& tile) {
  Block& k = tile.k;
  const int64_t N = int64_t(k.A2.size());
  const int64_t row = k.b * args.u.dim(1) + k.begin + i;
  const int64_t partial_row = k.first / L * args.u.rows() + row;
  const float* const B = args.B.row<float>(row);
  const float* const C = args.C.row<float>(row);
  float* const dB = partials.dB.row<float>(partial_row);
  float* const dC = partials.dC.row<float>(partial_row);
  const float* const __restrict dt = k.dt.at[i];
  const float* const __restrict dt_u = k.dt_u.at[i];
  const float* const __restrict dsum = tile.dsum.at[i];
  Lanes ddt{}, dinput{};  // ddt in units of 1 / ln 2, as A2 is
  for (int64_t n = 0; n < N; ++n) {
    const float* const __restrict A2 = k.A2[n].at;
    const float* const __restrict a = tile.a[i * N + n].at;
    const float* const __restrict before = tile.h[i * N + n].at;
    const float* const __restrict h = tile.h[(i + 1) * N + n].at;
    float* const __restrict carried = tile.carried[n].at;
    float* const __restrict dA = tile.dA[n].at;
    const float input = B[n], output = C[n];
    float dB_sum = 0, dC_sum = 0;
#pragma omp simd reduction(+ : dB_sum, dC_sum)
    for (int64_t l = 0; l < L; ++l) {
      const float dh = carried[l] + output * dsum[l];
      dC_sum += dsum[l] * h[l];
      dB_sum += dh * dt_u[l];
      dinput.at[l] += dh * input;
      carried[l] = a[l] * dh;
      const float dlog_a = carried[l] * before[l];
      ddt.at[l] += dlog_a * A2[l];
      dA[l] += dlog_a * dt[l];
    }
    dB[n] = dB_sum;
    dC[n] = dC_sum;
  }
  Lanes du, ddelta;
#pragma omp simd
  for (int64_t l = 0; l < L; ++l) {
    ddelta.at[l] = (ddt.at[l] * kLn2 + k.u.at[i][l] * dinput.at[l]) * k.slope.at[i][l];
    du.at[l] = dt[l] * dinput.at[l] + k.D.at[l] * dsum[l];
    tile.ddt_bias.at[l] += ddelta.at[l];
  }
  store_lanes(du.at, k.width, args.du.row<float>(row) + k.first);
  store_lanes(ddelta.at, k.width, args.ddelta.row<float>(row) + k.first);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void backward_block(const SelectiveScanBackward& args, const ScanPartials& partials, int64_t b,
                    int64_t block, BackwardTile& tile) {
  const int64_t tokens = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  Block& k = tile.k;
  load_block(args, b, block, k);
  tile.h.resize((kScanSpan + 1) * N), tile.a.resize(kScanSpan * N);
  tile.carried.resize(N), tile.dA.resize(N), tile.incoming.resize(N);
  clear(tile.carried), clear(tile.dA);
  tile.ddt_bias = tile.dD = Lanes{};
  if (args.dfinal_state) {
    load_states(args.dfinal_state.row<float>(b * E + k.first), k.width, tile.carried);
  }
  for (int64_t span = scan_spans(tokens) - 1; span >= 0; --span) {
    const float* const kept = args.span_states.row<float>(b * scan_spans(tokens) + span);
    load_states(kept + k.first * N, k.width, tile.incoming);
    std::copy(tile.incoming.begin(), tile.incoming.end(), tile.h.begin());
    load_span(args, span, k);
    for (int64_t i = 0; i < k.end - k.begin; ++i) {
      const int64_t row = b * tokens + k.begin + i;
      const bool start = starts_document(args, k, k.begin + i);
      recompute_token(args.B.row<float>(row), args.C.row<float>(row), start, i, tile);
      gate_token(args, i, tile);
    }
    for (int64_t i = k.end - k.begin - 1; i >= 0; --i) {
      const int64_t row = b * tokens + k.begin + i;
      for (const ConstTensorView& wanted : {args.u, args.delta, args.z, args.dy}) {
        prefetch(wanted, row - kScanSpan, k.first);
      }
      for (const TensorView& wanted : {args.du, args.ddelta, args.dz, args.y}) {
        prefetch(wanted, row - kScanSpan, k.first);
      }
      walk_back(args, partials, i, tile);
    }
  }
  if (args.dinitial_state) {
    store_states(tile.carried, k.width, args.dinitial_state.row<float>(b * E + k.first));
  }
  for (int64_t l = 0; l < k.width; ++l) {
    float* const sums = partials.parameters.row<float>(b * E + k.first + l);
    for (int64_t n = 0; n < N; ++n) sums[n] = tile.dA[n].at[l] * (k.A2[n].at[l] * kLn2);
    sums[N] = tile.ddt_bias.at[l];
    sums[N + 1] = tile.dD.at[l];
  }
}

}  // namespace

void selective_scan_forward_simd(const SelectiveScanForward& args) {
  for_each_block<ForwardTile>(
      args.u.dim(0), args.u.dim(2),
      [&](int64_t b, int64_t block, ForwardTile& tile) { forward_block(args, b, block, tile); });
}

void selective_scan_backward_simd(const SelectiveScanBackward& args, const ScanPartials& partials) {
  for_each_block<BackwardTile>(args.u.dim(0), args.u.dim(2),
                               [&](int64_t b, int64_t block, BackwardTile& tile) {
                                 backward_block(args, partials, b, block, tile);
                               });
}

}  // namespace sluice::cpu
