// Float convolution with channels on the SIMD lanes. Weights are transposed once, so that every
// loop below runs over packed channels; taps that do not exist read a row of zeros.
#include <algorithm>
#include <array>
#include <vector>

#include "kernels/causal_conv1d/causal_conv1d_cpu.h"
#include "kernels/core/fast_math.h"

namespace sluice::cpu {

namespace {

constexpr int64_t kChunk = 512;  // channels at a time: every row of a tile stays in L1

// v[c] = bias[c] + sum_k weight[k * stride + c] taps[k][c]
[[gnu::always_inline]] inline void weigh_taps(const float* const* taps, const float* weight,
                                              int64_t stride, const float* bias, int64_t K,
                                              int64_t channels, float* v) {
  if (K == 4) {  // one pass, for the width that everybody uses
    const float *const x0 = taps[0], *const x1 = taps[1], *const x2 = taps[2], *const x3 = taps[3];
    const float *const w0 = weight, *const w1 = w0 + stride, *const w2 = w1 + stride,
                       *const w3 = w2 + stride;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      v[c] = bias[c] + w0[c] * x0[c] + w1[c] * x1[c] + w2[c] * x2[c] + w3[c] * x3[c];
    }
    return;
  }
  std::copy_n(bias, channels, v);
  for (int64_t k = 0; k < K; ++k) {
    const float* const x = taps[k];
    const float* const w = weight + k * stride;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) v[c] += w[c] * x[c];
  }
}

[[gnu::always_inline]] inline void apply_silu(int64_t channels, float* v) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) v[c] = fast_silu(v[c]);
}

// v becomes dv.
[[gnu::always_inline]] inline void silu_gradient(const float* dy, int64_t channels, float* v) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) v[c] = dy[c] * silu_slope(v[c], fast_sigmoid(v[c]));
}

[[gnu::always_inline]] inline void add_product(const float* a, const float* b, int64_t channels,
                                               float* sum) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) sum[c] += a[c] * b[c];
}

[[gnu::always_inline]] inline void add_row(const float* a, int64_t channels, float* sum) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) sum[c] += a[c];
}

void transpose_weight(const ConstTensorView& weight, const TensorView& transposed) {
  const int64_t C = weight.dim(0), K = weight.dim(1);
  for (int64_t k = 0; k < K; ++k) {
    float* const to = transposed.row<float>(k);
    for (int64_t c = 0; c < C; ++c) to[c] = weight.row<float>(c)[k];
  }
}

constexpr std::array<float, kChunk> kZeros{};

// The whole row of one token. (Under GCC 12's ThreadSanitizer the resolver of clones crashes.)
#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void forward_row(const float* const* taps, const float* weight, int64_t stride, const float* bias,
                 int64_t K, int64_t channels, bool silu, float* y) {
  weigh_taps(taps, weight, stride, bias, K, channels, y);
  if (silu) apply_silu(channels, y);
}

// The K inputs of token t, from channel `first` on.
template <class Args>
void find_taps(const Args& args, int64_t b, int64_t t, int64_t first,
               std::vector<const float*>& taps) {
  const int64_t K = int64_t(taps.size());
  const int64_t doc_begin = args.doc_begin.template row<int32_t>(b)[t];
  for (int64_t k = 0; k < K; ++k) {
    const float* const tap = conv_tap<float>(args.x, args.halo, b, t - K + 1 + k, doc_begin);
    taps[k] = tap != nullptr ? tap + first : kZeros.data();
  }
}

// Channels [first, first + channels) of tokens [begin, end) of row b, backwards in time. A ring of
// K rows holds the newest gradients of v: dx[t] needs those of t ... t+K-1.
class BackwardChunk {
 public:
  BackwardChunk(const CausalConv1dBackward& args, const TensorView& transposed, int64_t first,
                int64_t channels, float* partial)
      : args_(args),
        weight_(transposed.as<float>() + first),
        stride_(transposed.row_size()),
        first_(first),
        channels_(channels),
        tokens_(args.x.dim(1)),
        K_(args.weight.dim(1)),
        partial_(partial),
        taps_(K_),
        ring_(K_ * kChunk) {}

  [[gnu::always_inline]] void run(int64_t b, int64_t begin, int64_t end) {
    for (int64_t t = std::min(tokens_, end + K_ - 1) - 1; t >= begin; --t) {
      recompute(b, t);
      if (t >= end) continue;  // the next block's token, which dx of ours needs
      for (int64_t k = 0; k < K_; ++k) {
        float* const dweight = partial_ + k * stride_;
        if (taps_[k] != kZeros.data()) add_product(ring_row(t), taps_[k], channels_, dweight);
      }
      add_row(ring_row(t), channels_, partial_ + K_ * stride_);
      input_gradient(b, t, args_.dx.row<float>(b * tokens_ + t) + first_);
    }
    if (begin > 0 || !args_.dhalo) return;
    for (int64_t t = -1; t >= -(K_ - 1); --t) {
      input_gradient(b, t, args_.dhalo.row<float>(b * (K_ - 1) + K_ - 1 + t) + first_);
    }
  }

 private:
  float* ring_row(int64_t t) { return ring_.data() + t % K_ * kChunk; }

  // dv of token t, into the ring.
  [[gnu::always_inline]] void recompute(int64_t b, int64_t t) {
    float* const dv = ring_row(t);
    const float* const dy = args_.dy.row<float>(b * tokens_ + t) + first_;
    find_taps(args_, b, t, first_, taps_);
    if (!args_.silu) {
      std::copy_n(dy, channels_, dv);
      return;
    }
    const float* const bias = args_.bias ? args_.bias.as<float>() + first_ : kZeros.data();
    weigh_taps(taps_.data(), weight_, stride_, bias, K_, channels_, dv);
    silu_gradient(dy, channels_, dv);
  }

  // The tokens that read input t are t ... t+K-1, as far as they are in its document.
  [[gnu::always_inline]] void input_gradient(int64_t b, int64_t t, float* dx) {
    for (int64_t k = 0; k < K_; ++k) {
      const int64_t reader = t + K_ - 1 - k;
      const bool reads =
          reader >= 0 && reader < tokens_ && args_.doc_begin.row<int32_t>(b)[reader] <= t;
      taps_[k] = reads ? ring_row(reader) : kZeros.data();
    }
    weigh_taps(taps_.data(), weight_, stride_, kZeros.data(), K_, channels_, dx);
  }

  const CausalConv1dBackward& args_;
  const float* weight_;  // (K, C) from this chunk's first channel on
  int64_t stride_;       // C
  int64_t first_, channels_, tokens_, K_;
  float* partial_;  // (K + 1, C) likewise: dweight transposed, then dbias
  std::vector<const float*> taps_;
  std::vector<float> ring_;  // (K, kChunk)
};

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void backward_tokens(BackwardChunk& chunk, int64_t b, int64_t begin, int64_t end) {
  chunk.run(b, begin, end);
}

}  // namespace

void causal_conv1d_forward_simd(const CausalConv1dForward& args, TensorView transposed) {
  const int64_t tokens = args.x.dim(1), C = args.x.dim(2), K = args.weight.dim(1);
  transpose_weight(args.weight, transposed);
#pragma omp parallel
  {
    std::vector<const float*> taps(K);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.x.rows(); ++row) {
      for (int64_t first = 0; first < C; first += kChunk) {
        const int64_t channels = std::min(kChunk, C - first);
        const float* const bias = args.bias ? args.bias.as<float>() + first : kZeros.data();
        float* const y = args.y.row<float>(row) + first;
        find_taps(args, row / tokens, row % tokens, first, taps);
        forward_row(taps.data(), transposed.as<float>() + first, C, bias, K, channels, args.silu,
                    y);
      }
    }
  }
}

void causal_conv1d_backward_simd(const CausalConv1dBackward& args, TensorView transposed,
                                 TensorView partial) {
  const int64_t tokens = args.x.dim(1), C = args.x.dim(2), K = args.weight.dim(1);
  const RowBlocks blocks = conv_blocks(args.x.rows());
  const int64_t chunks = (C + kChunk - 1) / kChunk;
  transpose_weight(args.weight, transposed);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t block = 0; block < blocks.count; ++block) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * kChunk;
      const int64_t channels = std::min(kChunk, C - first);
      float* const sums = partial.as<float>() + block * (K + 1) * C + first;
      for (int64_t k = 0; k <= K; ++k) std::fill_n(sums + k * C, channels, 0.0f);
      BackwardChunk work(args, transposed, first, channels, sums);
      for (int64_t row = blocks.begin(block); row < blocks.end(block);) {
        const int64_t b = row / tokens;
        const int64_t end = std::min(blocks.end(block), (b + 1) * tokens);
        backward_tokens(work, b, row - b * tokens, end - b * tokens);
        row = end;
      }
    }
  }
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < C; ++c) {
    float* const dweight = args.dweight.row<float>(c);
    for (int64_t block = 0; block < blocks.count; ++block) {
      const float* const sums = partial.as<float>() + block * (K + 1) * C + c;
      for (int64_t k = 0; k < K; ++k) dweight[k] += sums[k * C];
      if (args.dbias) args.dbias.as<float>()[c] += sums[K * C];
    }
  }
}

}  // namespace sluice::cpu
