// Tokens as maps of the state, forwards and in reverse, and chains of such maps. About half of the
// work of the forward: 4 instructions and one exponential a token, channel and state.
#include "kernels/selective_scan/selective_scan_cuda.cuh"

namespace sluice::cuda {

namespace {

constexpr int kChainThreads = 256;
constexpr int kFoldThreads = 128;  // at most: a thread is a channel
constexpr int kScanAhead = 4;      // tokens on their way while others are worked on
static_assert(kSpan == kWarp, "a lane looks up one token of a span");

// Channels of a block: those that keep the processors about equally busy, the widest of them.
int64_t fold_width(int64_t B, int64_t T, int64_t E) {
  int64_t best = 0, least = 0;
  for (const int64_t width : {kFoldThreads, 96, 64, 32}) {
    const int64_t blocks = B * scan_pieces(B, T, E) * ceil_div(E, width);
    const int64_t load = ceil_div(blocks, kScanProcessors) * width;
    if (best == 0 || load < least) best = width, least = load;
  }
  return best;
}

// Which channel and which part of which row a thread has.
struct ScanThread {
  int b, map;   // map: index of the piece among those of all rows
  int e;        // the last channel where there is none for this thread
  int row;      // of the row's first token
  int map_row;  // of the channel in (maps, E, ...)
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

struct FoldOutput {
  ScanColumns<float> state;   // a row a map and channel
  ScanColumns<float> dt_sum;  // a row a map; absent in reverse where nobody asks
};

template <class T>
__global__ void __launch_bounds__(kFoldThreads, 3) fold_kernel(ScanInput<T> in, FoldOutput out) {
  __shared__ SpanBC staged[2];
  const ScanThread me(in);
  const ScanChannel channel(in, me.e);
  float h[kStates] = {};
  float dt_sum = 0;
  const ScanColumns<const T> of_u = in.u.from(me.e), of_delta = in.delta.from(me.e);
  ScanTokens<T> u, delta;
  const auto load = [&](int t) {
    u.load(of_u, me.row + t, me.row + me.end);
    delta.load(of_delta, me.row + t, me.row + me.end, kNoDelta);
  };
  load(me.first_span * kSpan);
  staged[0].stage(in, me.b, me.first_span);
  for (int span = me.first_span; span <= me.last_span; ++span) {
    __syncthreads();
    const int turn = span - me.first_span, begin = span * kSpan;
    if (span < me.last_span) staged[(turn + 1) & 1].stage(in, me.b, span + 1);
    const SpanBC& bc = staged[turn & 1];
    const unsigned starts = document_starts(in, me.b, span);
    const int count = min(kSpan, me.end - begin);
    float dt_of_span = 0;  // a sum of sums: rows are long
    for (int first = 0; first < count; first += kScanAhead) {
      const ScanTokens<T> u_now = u, delta_now = delta;
      load(begin + first + kScanAhead);
#pragma unroll
      for (int i = 0; i < kScanAhead; ++i) {
        const bool start = starts >> (first + i) & 1;
        const float dt = ScanStep(delta_now[i] + channel.dt_bias).dt;
        advance_states(channel, bc, first + i, dt, u_now[i], start, h);
        dt_sum = start ? 0 : dt_sum;
        dt_of_span = start ? dt : dt_of_span + dt;
      }
    }
    dt_sum += dt_of_span;
  }
  if (!me.active) return;
  store_states(out.state.at(me.map_row), in.states, in.wide, h);
  *out.dt_sum.at(me.map, me.e) = dt_sum;
}

template <class T>
__global__ void __launch_bounds__(kFoldThreads, 3)
    reverse_fold_kernel(ScanInput<T> in, FoldOutput out) {
  __shared__ SpanBC staged[2];
  const ScanThread me(in);
  const ScanChannel channel(in, me.e);
  float carried[kStates] = {};
  float dt_sum = 0;
  const ScanColumns<const T> of_dy = in.dy.from(me.e), of_delta = in.delta.from(me.e);
  const ScanColumns<const T> of_z = in.z.from(me.e);
  ScanTokens<T> dy, delta, z;
  const auto load = [&](int t) {
    dy.load(of_dy, me.row + t, me.row + me.end);
    delta.load(of_delta, me.row + t, me.row + me.end, kNoDelta);
    z.load(of_z, me.row + t, me.row + me.end);
  };
  load((me.end - 1) / kScanAhead * kScanAhead);
  staged[0].stage(in, me.b, me.last_span);
  for (int span = me.last_span; span >= me.first_span; --span) {
    __syncthreads();
    const int turn = me.last_span - span, begin = span * kSpan;
    if (span > me.first_span) staged[(turn + 1) & 1].stage(in, me.b, span - 1);
    const SpanBC& bc = staged[turn & 1];
    const unsigned starts = document_starts(in, me.b, span);
    const int count = min(kSpan, me.end - begin);
    for (int first = (count - 1) / kScanAhead * kScanAhead; first >= 0; first -= kScanAhead) {
      const ScanTokens<T> dy_now = dy, delta_now = delta, z_now = z;
      if (begin + first >= kScanAhead) load(begin + first - kScanAhead);
#pragma unroll
      for (int i = kScanAhead - 1; i >= 0; --i) {
        const float dt = ScanStep(delta_now[i] + channel.dt_bias).dt;
        const float decay_dt = ScanChannel::decay_dt(dt, starts >> (first + i) & 1);
        const float dsum = in.z ? dy_now[i] * z_now[i] * sigmoid(z_now[i]) : dy_now[i];
        float C[kStates];
        bc.C(first + i, C);
#pragma unroll
        for (int n = 0; n < kStates; ++n)
          carried[n] = exp2_approx(decay_dt * channel.A[n]) * fmaf(C[n], dsum, carried[n]);
        dt_sum += dt;
      }
    }
  }
  if (!me.active) return;
  store_states(out.state.at(me.map_row), in.states, in.wide, carried);
  if (out.dt_sum) *out.dt_sum.at(me.map, me.e) = dt_sum;
}

struct ChainTensors {
  const float* A_log;
  const int32_t* doc_begin;
  const float* entering;  // null: zeros
  float* leaving;         // null: not asked for
  float* dt_total;
  float* state;  // of the maps
  const float* dt_sum;
  int64_t A_stride, doc_stride, entering_stride, leaving_stride, dt_total_stride;
  int64_t batch, tokens, channels, N;
  RowBlocks pieces;
  bool reverse;
};

// A thread follows one state of one channel over the pieces of a row.
__global__ void chain_kernel(ChainTensors chain) {
  const int64_t i = blockIdx.x * int64_t(kChainThreads) + threadIdx.x;
  const int64_t width = chain.channels * chain.N;
  if (i >= chain.batch * width) return;
  const int64_t b = i / width, e = i % width / chain.N, n = i % chain.N;
  const int64_t row = b * chain.channels + e;
  const float A = -expf(chain.A_log[e * chain.A_stride + n]);
  float carry = chain.entering == nullptr ? 0 : chain.entering[row * chain.entering_stride + n];
  float dt_total = 0;
  for (int64_t turn = 0; turn < chain.pieces.count; ++turn) {
    const int64_t piece = chain.reverse ? chain.pieces.count - 1 - turn : turn;
    const int64_t map = b * chain.pieces.count + piece;
    const int64_t begin = chain.pieces.begin(piece) * kSpan;
    const int64_t end = min(chain.tokens, chain.pieces.end(piece) * kSpan);
    const bool reset = chain.doc_begin[b * chain.doc_stride + end - 1] >= begin;
    const float dt_sum = chain.dt_sum[map * chain.channels + e];
    float& state = chain.state[map * width + e * chain.N + n];
    const float own = state;
    state = carry;
    carry = reset ? own : fmaf(expf(A * dt_sum), carry, own);
    dt_total = reset ? dt_sum : dt_total + dt_sum;
  }
  if (chain.leaving != nullptr) chain.leaving[row * chain.leaving_stride + n] = carry;
  if (chain.dt_total != nullptr && n == 0) chain.dt_total[b * chain.dt_total_stride + e] = dt_total;
}

struct DecayTensors {
  const float* dt_sum;
  const float* A_log;
  const int32_t* doc_begin;
  float* decay;
  int64_t A_stride, doc_stride;
  int64_t batch, channels, N;
};

// Of one span of tokens [begin, end).
__global__ void decay_kernel(DecayTensors tensors, int64_t begin, int64_t end) {
  const int64_t i = blockIdx.x * int64_t(kChainThreads) + threadIdx.x;
  const int64_t width = tensors.channels * tensors.N;
  if (i >= tensors.batch * width) return;
  const int64_t b = i / width, e = i % width / tensors.N, n = i % tensors.N;
  const bool reset = tensors.doc_begin[b * tensors.doc_stride + end - 1] >= begin;
  const float A = -expf(tensors.A_log[e * tensors.A_stride + n]);
  tensors.decay[i] = reset ? 0.0f : expf(A * tensors.dt_sum[b * tensors.channels + e]);
}

}  // namespace

template <class T>
void launch_folds(const Context& ctx, const SelectiveScanFold& args) {
  for (int64_t first = 0; first < args.A_log.dim(1); first += kStates) {
    const Dims& dims = args.delta.dims;
    ScanInput<T> in(args, first, fold_width(dims[0], dims[1], dims[2]));
    in.check_wide(args.state);
    launch(ctx, "selective_scan_fold", in.grid(1), fold_kernel<T>, in,
           FoldOutput{.state = {args.state, first}, .dt_sum = args.dt_sum});
  }
}

template <class T>
void launch_reverse_folds(const Context& ctx, const SelectiveScanReverseFold& args,
                          const TensorView& dt_sum) {
  for (int64_t first = 0; first < args.A_log.dim(1); first += kStates) {
    const Dims& dims = args.delta.dims;
    ScanInput<T> in(args, first, fold_width(dims[0], dims[1], dims[2]));
    in.check_wide(args.dinitial_state);
    launch(ctx, "selective_scan_reverse_fold", in.grid(1), reverse_fold_kernel<T>, in,
           FoldOutput{.state = {args.dinitial_state, first}, .dt_sum = dt_sum});
  }
}

template void launch_folds<float>(const Context&, const SelectiveScanFold&);
template void launch_folds<Bf16>(const Context&, const SelectiveScanFold&);
template void launch_reverse_folds<float>(const Context&, const SelectiveScanReverseFold&,
                                          const TensorView&);
template void launch_reverse_folds<Bf16>(const Context&, const SelectiveScanReverseFold&,
                                         const TensorView&);

void launch_chain(const Context& ctx, const ScanChain& chain, const ScanMaps& maps) {
  const int64_t B = chain.doc_begin.dim(0), T = chain.doc_begin.dim(1);
  const int64_t E = chain.A_log.dim(0), N = chain.A_log.dim(1);
  const ChainTensors tensors{.A_log = pointer<float>(chain.A_log),
                             .doc_begin = pointer<int32_t>(chain.doc_begin),
                             .entering = optional_pointer<float>(chain.entering),
                             .leaving = optional_pointer<float>(chain.leaving),
                             .dt_total = optional_pointer<float>(chain.dt_total),
                             .state = pointer<float>(maps.state),
                             .dt_sum = pointer<float>(maps.dt_sum),
                             .A_stride = chain.A_log.row_stride,
                             .doc_stride = chain.doc_begin.row_stride,
                             .entering_stride = chain.entering.row_stride,
                             .leaving_stride = chain.leaving.row_stride,
                             .dt_total_stride = chain.dt_total.row_stride,
                             .batch = B,
                             .tokens = T,
                             .channels = E,
                             .N = N,
                             .pieces = RowBlocks(scan_spans(T), scan_pieces(B, T, E)),
                             .reverse = chain.reverse};
  launch(ctx, "selective_scan_chain",
         {.blocks = unsigned(ceil_div(B * E * N, kChainThreads)), .threads = kChainThreads},
         chain_kernel, tensors);
}

void selective_scan_fold(const Context& ctx, const SelectiveScanFold& args, const ScanMaps& maps) {
  SelectiveScanFold of_pieces = args;
  if (maps.state) of_pieces.state = maps.state, of_pieces.dt_sum = maps.dt_sum;
  dispatch_float(args.u.dtype, [&]<class T>() { launch_folds<T>(ctx, of_pieces); });
  if (!maps.state) return;
  launch_chain(ctx,
               {.A_log = args.A_log,
                .doc_begin = args.doc_begin,
                .leaving = args.state,
                .dt_total = args.dt_sum},
               maps);
}

void selective_scan_reverse_fold(const Context& ctx, const SelectiveScanReverseFold& args,
                                 const ScanMaps& maps) {
  SelectiveScanReverseFold of_pieces = args;
  if (maps.state) of_pieces.dinitial_state = maps.state;
  dispatch_float(args.dy.dtype,
                 [&]<class T>() { launch_reverse_folds<T>(ctx, of_pieces, maps.dt_sum); });
  if (!maps.state) return;
  launch_chain(ctx,
               {.A_log = args.A_log,
                .doc_begin = args.doc_begin,
                .leaving = args.dinitial_state,
                .reverse = true},
               maps);
}

void selective_scan_decay(const Context& ctx, const SelectiveScanDecay& args) {
  const int64_t B = args.doc_begin.dim(0), E = args.A_log.dim(0), N = args.A_log.dim(1);
  for (int64_t r = 0; r < args.decay.dim(0); ++r) {
    const DecayTensors tensors{.dt_sum = pointer<float>(args.dt_sum) + r * args.dt_sum.row_stride,
                               .A_log = pointer<float>(args.A_log),
                               .doc_begin = pointer<int32_t>(args.doc_begin),
                               .decay = pointer<float>(args.decay) + r * args.decay.row_stride,
                               .A_stride = args.A_log.row_stride,
                               .doc_stride = args.doc_begin.row_stride,
                               .batch = B,
                               .channels = E,
                               .N = N};
    launch(ctx, "selective_scan_decay",
           {.blocks = unsigned(ceil_div(B * E * N, kChainThreads)), .threads = kChainThreads},
           decay_kernel, tensors, args.cuts[r], args.cuts[r + 1]);
  }
}

}  // namespace sluice::cuda
