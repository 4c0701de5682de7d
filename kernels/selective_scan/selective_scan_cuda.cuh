// What the scan's kernels share. A thread is a channel with kStates of its states in registers and
// walks over the tokens of a piece of a row; a block is 1 to 4 warps of neighbouring channels,
// which share B and C of a span of tokens in shared memory.
#pragma once

#include <cfloat>

#include "kernels/core/row_blocks.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/selective_scan/selective_scan_cuda.h"

namespace sluice::cuda {

constexpr int kStates = int(kScanStates);
constexpr int kSpan = int(kScanSpan);
constexpr int kMaxScanThreads = 128;
constexpr int kScanAhead = 4;  // tokens on their way while others are worked on
static_assert(kSpan == kWarp, "a lane looks up one token of a span");

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ inline void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// A store without a branch, which would keep the tokens around it from being worked on together.
__device__ inline void store_if(bool present, Bf16* to, float value) {
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %0, 0; @p st.global.u16 [%1], %2;}" ::"r"(unsigned(present)),
      "l"(to), "h"(__bfloat16_as_ushort(from_float<Bf16>(value))));
}
__device__ inline void store_if(bool present, float* to, float value) {
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %0, 0; @p st.global.f32 [%1], %2;}" ::"r"(unsigned(present)),
      "l"(to), "f"(value));
}

// dt = softplus(x) and its derivative.
struct ScanStep {
  float dt, slope;

  __device__ explicit ScanStep(float x) {
    const float e = exp2_approx(kLog2E * x);
    // log(1 + e), by its polynomial where 1 + e would round e off (relative error 1e-8).
    float series = fmaf(e, -0.09216756f, 0.181595551f);
    series = fmaf(e, series, -0.247756151f);
    series = fmaf(e, series, 0.333205997f);
    series = fmaf(e, series, -0.499997313f);
    series = fmaf(e, series, 0.999999991f);
    const float logarithm = e < 0.25f ? e * series : kLn2 * log2_approx(1 + e);
    const bool linear = x > 20;
    dt = linear ? x : logarithm;
    slope = linear ? 1 : e * reciprocal_approx(1 + e);
  }
};

// A tensor of rows. Rows are counted in 32 bits, so that an address is one multiplication.
template <class T>
struct ScanColumns {
  T* data = nullptr;
  int stride = 0;  // bytes

  ScanColumns() = default;
  template <class Void>
  ScanColumns(const BasicTensorView<Void>& view, int64_t first = 0)
      : data(view ? pointer<std::remove_const_t<T>>(view) + first : nullptr),
        stride(int(view.row_stride * int64_t(sizeof(T)))) {
    SLUICE_CHECK(view.row_stride * int64_t(sizeof(T)) <= INT32_MAX && view.rows() <= INT32_MAX,
                 "the scan's rows have at most 2^31 bytes, and there are at most 2^31 of them");
  }
  __device__ T* at(int row, int column = 0) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(data) + int64_t(row) * stride) + column;
  }
  // The same from `column` on.
  __device__ ScanColumns from(int column) const {
    ScanColumns columns = *this;
    if (data != nullptr) columns.data += column;
    return columns;
  }
  __device__ explicit operator bool() const { return data != nullptr; }
};

// The tensors that kernels read, from `first_state` on, and how the work is cut.
template <class T>
struct ScanInput {
  ScanColumns<const T> u, delta, z, dy, B, C;
  ScanColumns<const float> A_log;
  const float* dt_bias = nullptr;
  const float* D = nullptr;
  ScanColumns<const int32_t> doc_begin;
  int batch, tokens, channels;
  int N;       // states of a channel
  int states;  // of them here
  bool wide;   // whether a thread's states move by 16 bytes
  int tiles;
  RowBlocks pieces;  // of a row's spans

  template <class Args>
  ScanInput(const Args& args, int64_t first_state)
      : delta(args.delta),
        A_log(args.A_log, first_state),
        dt_bias(pointer<float>(args.dt_bias)),
        doc_begin(args.doc_begin),
        batch(int(args.delta.dim(0))),
        tokens(int(args.delta.dim(1))),
        channels(int(args.delta.dim(2))),
        N(int(args.A_log.dim(1))),
        states(int(std::min<int64_t>(kStates, N - first_state))),
        wide(N % kStates == 0),
        tiles(int(scan_tiles(batch, tokens, channels))),
        pieces(scan_spans(tokens), scan_pieces(batch, tokens, channels)) {
    if constexpr (requires { args.u; }) u = ScanColumns<const T>(args.u);
    if constexpr (requires { args.z; }) z = ScanColumns<const T>(args.z);
    if constexpr (requires { args.dy; }) dy = ScanColumns<const T>(args.dy);
    if constexpr (requires { args.B; }) B = ScanColumns<const T>(args.B, first_state);
    if constexpr (requires { args.C; }) C = ScanColumns<const T>(args.C, first_state);
    if constexpr (requires { args.D; }) D = pointer<float>(args.D);
  }
  // Threads move 16 bytes of these states, or one by one.
  void check_wide(const ConstTensorView& states_of_channels) {
    if (!states_of_channels) return;
    wide = wide && reinterpret_cast<uintptr_t>(states_of_channels.data) % 16 == 0 &&
           states_of_channels.row_stride % 4 == 0;
  }
  Grid grid(size_t shared_bytes = 0) const {
    const unsigned width = unsigned(scan_width(batch, tokens, channels));
    return {.blocks = unsigned(batch * pieces.count * tiles),
            .threads = width,
            .shared_bytes = shared_bytes};
  }
};

// Which channel and which part of which row a thread has.
struct ScanThread {
  int b, map;     // map: index of the piece among those of all rows
  int e;          // the last channel where there is none for this thread
  int row;        // of the row's first token
  int state_row;  // of the channel in (B, E, ...)
  int map_row;    // of the channel in (maps, E, ...)
  int first_span, last_span;
  int end;  // of the tokens
  bool active;

  template <class T>
  __device__ explicit ScanThread(const ScanInput<T>& in) {
    const int tile = int(blockIdx.x % in.tiles);
    map = int(blockIdx.x / in.tiles);
    b = map / int(in.pieces.count);
    first_span = int(in.pieces.begin(map % int(in.pieces.count)));
    last_span = int(in.pieces.end(map % int(in.pieces.count))) - 1;
    end = min(in.tokens, (last_span + 1) * kSpan);
    e = tile * int(blockDim.x) + int(threadIdx.x);
    active = e < in.channels;
    e = min(e, in.channels - 1);
    row = b * in.tokens;
    state_row = b * in.channels + e;
    map_row = map * in.channels + e;
  }
};

// What a channel has in all its tokens.
struct ScanChannel {
  float A[kStates];  // times log2(e), below 0
  float dt_bias, D;

  template <class T>
  __device__ ScanChannel(const ScanInput<T>& in, int e)
      : dt_bias(in.dt_bias[e]), D(in.D == nullptr ? 0.0f : in.D[e]) {
#pragma unroll
    for (int n = 0; n < kStates; ++n)
      A[n] = n < in.states ? fminf(-kLog2E * expf(*in.A_log.at(e, n)), -FLT_MIN) : -1.0f;
  }
  // dt as decays see it: infinite, which makes them 0, where a document starts.
  __device__ static float decay_dt(float dt, bool starts) { return starts ? INFINITY : dt; }
};

// The states of a channel, `states` of them used.
__device__ inline void load_states(const float* from, int states, bool wide, float (&h)[kStates]) {
  if (wide) {
#pragma unroll
    for (int n = 0; n < kStates; n += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + n);
      h[n] = four.x, h[n + 1] = four.y, h[n + 2] = four.z, h[n + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int n = 0; n < kStates; ++n) h[n] = n < states ? from[n] : 0.0f;
  }
}
__device__ inline void store_states(float* to, int states, bool wide, const float (&h)[kStates]) {
  if (wide) {
#pragma unroll
    for (int n = 0; n < kStates; n += 4)
      *reinterpret_cast<float4*>(to + n) = {h[n], h[n + 1], h[n + 2], h[n + 3]};
  } else {
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      if (n < states) to[n] = h[n];
    }
  }
}
template <class Columns>
__device__ void load_states_or_zeros(const Columns& from, int row, int states, bool wide,
                                     float (&h)[kStates]) {
#pragma unroll
  for (float& value : h) value = 0;
  if (from) load_states(from.at(row), states, wide, h);
}

// B and C of a span, in f32; zero where there is no token, no state or no tensor.
struct SpanBC {
  float4 tokens[kSpan][2 * kStates / 4];

  template <class T>
  __device__ void stage(const ScanInput<T>& in, int b, int span) {
    float* const to = reinterpret_cast<float*>(tokens);
#pragma unroll 4
    for (int i = threadIdx.x; i < kSpan * 2 * kStates; i += blockDim.x) {
      const int t = span * kSpan + i / (2 * kStates);
      const int n = i % kStates;
      const ScanColumns<const T>& from = i % (2 * kStates) < kStates ? in.B : in.C;
      to[i] = from && t < in.tokens && n < in.states ? to_float(*from.at(b * in.tokens + t, n)) : 0;
    }
  }
  __device__ void B(int token, float (&to)[kStates]) const { load(token, 0, to); }
  __device__ void C(int token, float (&to)[kStates]) const { load(token, kStates / 4, to); }

 private:
  __device__ void load(int token, int first, float (&to)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates / 4; ++i) {
      const float4 four = tokens[token][first + i];
      to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
    }
  }
};

// Bit i: a document starts at token i of the span.
template <class T>
__device__ unsigned document_starts(const ScanInput<T>& in, int b, int span) {
  const int t = span * kSpan + int(threadIdx.x % kWarp);
  return __ballot_sync(kFullWarp, t < in.tokens && *in.doc_begin.at(b, t) == t);
}

// A lane asks for the channels from `from` on, of one token of the span.
template <class T>
__device__ void prefetch_span(const ScanInput<T>& in, const ScanColumns<const T>& from, int b,
                              int span) {
  const int t = span * kSpan + int(threadIdx.x % kWarp);
  if (from && t < in.tokens) prefetch_to_l2(from.at(b * in.tokens + t));
}

// kScanAhead tokens of a channel: rows from `row` on. Those from `end` on have the value `none`: a
// delta of minus infinity and zeros elsewhere are a token that changes nothing, so that only stores
// need to know how many tokens there are.
template <class T>
struct ScanTokens {
  T values[kScanAhead];

  __device__ void load(const ScanColumns<const T>& channel, int row, int end, float none = 0) {
#pragma unroll
    for (int i = 0; i < kScanAhead; ++i) {
      values[i] = from_float<T>(none);
      if (channel && row + i < end) values[i] = *channel.at(row + i);
    }
  }
  __device__ float operator[](int i) const { return to_float(values[i]); }
};
constexpr float kNoDelta = -INFINITY;

// h of a token from h of the one before, in place.
__device__ inline void advance_states(const ScanChannel& channel, const SpanBC& bc, int token,
                                      float dt, float u, bool starts, float (&h)[kStates]) {
  const float decay_dt = ScanChannel::decay_dt(dt, starts), dt_u = dt * u;
  float B[kStates];
  bc.B(token, B);
#pragma unroll
  for (int n = 0; n < kStates; ++n)
    h[n] = fmaf(exp2_approx(decay_dt * channel.A[n]), h[n], dt_u * B[n]);
}
__device__ inline float dot_C(const SpanBC& bc, int token, const float (&h)[kStates]) {
  float C[kStates], sums[2] = {0, 0};
  bc.C(token, C);
#pragma unroll
  for (int n = 0; n < kStates; ++n) sums[n % 2] = fmaf(C[n], h[n], sums[n % 2]);
  return sums[0] + sums[1];
}

// a of a channel's next token. Exponentials have a pipe of their own, which is the busiest: those
// of the next token are begun between the sums of the present one, in the same loop.
struct ScanDecays {
  float a[kStates];

  __device__ ScanDecays(const ScanChannel& channel, float decay_dt) {
#pragma unroll
    for (int n = 0; n < kStates; ++n) a[n] = exp2_approx(decay_dt * channel.A[n]);
  }
  // h of a token from h of the one before, in place; the decays become the next token's. Returns
  // the sum over n of C h.
  __device__ float advance_and_dot(const ScanChannel& channel, const SpanBC& bc, int token,
                                   float dt_u, float next_decay_dt, float (&h)[kStates]) {
    float B[kStates], C[kStates], sums[2] = {0, 0};
    bc.B(token, B), bc.C(token, C);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const float next = exp2_approx(next_decay_dt * channel.A[n]);
      h[n] = fmaf(a[n], h[n], dt_u * B[n]);
      a[n] = next;
      sums[n % 2] = fmaf(C[n], h[n], sums[n % 2]);
    }
    return sums[0] + sums[1];
  }
};

// What the states need of kScanAhead tokens.
struct ScanInputs {
  float decay_dt[kScanAhead], dt_u[kScanAhead];

  __device__ void set(int i, float dt, float u, bool starts) {
    decay_dt[i] = ScanChannel::decay_dt(dt, starts), dt_u[i] = dt * u;
  }
  // Of the token behind token i; `next` are the tokens behind these.
  __device__ float decay_dt_behind(int i, const ScanInputs& next) const {
    return i + 1 < kScanAhead ? decay_dt[i + 1] : next.decay_dt[0];
  }
};

// Pieces as maps, and the states (or, reversed, the gradients) that enter them, which take the
// place of maps.state.
template <class T>
void launch_folds(const Context& ctx, const SelectiveScanFold& args);
template <class T>
void launch_reverse_folds(const Context& ctx, const SelectiveScanReverseFold& args,
                          const TensorView& dt_sum);

struct ScanChain {
  ConstTensorView A_log = {};
  ConstTensorView doc_begin = {};
  ConstTensorView entering = {};  // (B, E, N): what enters the row; absent: zeros
  TensorView leaving = {};        // (B, E, N), optional
  TensorView dt_total = {};       // (B, E): over the row's last document; optional
  bool reverse = false;
};
void launch_chain(const Context& ctx, const ScanChain& chain, const ScanMaps& maps);

}  // namespace sluice::cuda
