// The backward. A warp walks over its tokens in reverse, a block of kBlock at a time: it runs the
// block forwards from a kept state, leaving h of every token in shared memory, and then backwards.
#include <type_traits>

#include "kernels/device/mma.cuh"
#include "kernels/selective_scan/selective_scan_cuda.cuh"

namespace sluice::cuda {

namespace {

constexpr int kBlock = 16;  // tokens whose states are in shared memory at once
constexpr int kSums = 2 * kStates;
constexpr int kReduceThreads = 256;
static_assert(kSpan == 2 * kBlock && kStates == 16, "the tiles of a warp are laid out for these");

template <class T>
struct BackwardOutput {
  ScanColumns<const float> span_states;
  ScanColumns<const float> entering;  // gradient of the state after a piece; absent: zeros
  ScanColumns<T> du, ddelta;
  ScanColumns<T> dz, y;                           // optional
  ScanColumns<float> dinitial;                    // optional
  ScanColumns<float> dBC;                         // a row a tile and token
  ScanColumns<float> parameters;                  // a row a piece and sum
  ScanColumns<float> sum_y, sum_dinput, sum_ddt;  // over blocks of states, if there are several
  bool first, last;                               // of those blocks

  __device__ BackwardOutput of_channel(int e) const {
    BackwardOutput out = *this;
    out.du = du.from(e), out.ddelta = ddelta.from(e), out.dz = dz.from(e), out.y = y.from(e);
    out.sum_y = sum_y.from(e), out.sum_dinput = sum_dinput.from(e), out.sum_ddt = sum_ddt.from(e);
    return out;
  }
};

// h before the block and after each of its tokens, of a warp's channels: kBlock + 1 slots. Later a
// slot takes the gradient of h, and after that the token's kSums sums over channels. In bf16 a slot
// is an operand of tensor cores; the recurrence itself stays in f32 registers.
template <class T>
class History;

template <>
class History<Bf16> {
 public:
  static constexpr int kSlot = kWarp * kStates;

  __device__ explicit History(void* data) : data_(static_cast<Bf16*>(data)) {}
  __device__ SharedTile<kStates> tile(int slot) const { return {data_ + slot * kSlot}; }
  __device__ float* sums(int slot) const { return reinterpret_cast<float*>(data_ + slot * kSlot); }

  __device__ void store(int slot, const float (&h)[kStates]) const {
#pragma unroll
    for (int n = 0; n < kStates; n += 8) {
      *reinterpret_cast<uint4*>(tile(slot).piece(threadIdx.x % kWarp, n)) = {
          pack_bf16(h[n], h[n + 1]), pack_bf16(h[n + 2], h[n + 3]), pack_bf16(h[n + 4], h[n + 5]),
          pack_bf16(h[n + 6], h[n + 7])};
    }
  }
  struct Packed {
    uint4 eights[kStates / 8];
  };
  __device__ Packed load_packed(int slot) const {
    const int lane = threadIdx.x % kWarp;
    return {*reinterpret_cast<const uint4*>(tile(slot).piece(lane, 0)),
            *reinterpret_cast<const uint4*>(tile(slot).piece(lane, 8))};
  }
  __device__ static void unpack(const Packed& packed, float (&h)[kStates]) {
#pragma unroll
    for (int n = 0; n < kStates; n += 8) {
      const uint4& eight = packed.eights[n / 8];
      const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = unpack_bf16(words[i]);
        h[n + 2 * i] = two.x, h[n + 2 * i + 1] = two.y;
      }
    }
  }

 private:
  Bf16* data_;
};

template <>
class History<float> {
 public:
  static constexpr int kSlot = kWarp * kStates;

  __device__ explicit History(void* data) : data_(static_cast<float*>(data)) {}
  __device__ float* sums(int slot) const { return data_ + slot * kSlot; }

  __device__ void store(int slot, const float (&h)[kStates]) const {
#pragma unroll
    for (int n = 0; n < kStates; n += 4) *piece(slot, n) = {h[n], h[n + 1], h[n + 2], h[n + 3]};
  }
  struct Packed {
    float4 fours[kStates / 4];
  };
  __device__ Packed load_packed(int slot) const {
    return {*piece(slot, 0), *piece(slot, 4), *piece(slot, 8), *piece(slot, 12)};
  }
  __device__ static void unpack(const Packed& packed, float (&h)[kStates]) {
#pragma unroll
    for (int n = 0; n < kStates; n += 4) {
      const float4& four = packed.fours[n / 4];
      h[n] = four.x, h[n + 1] = four.y, h[n + 2] = four.z, h[n + 3] = four.w;
    }
  }

 private:
  // Pieces of 16 bytes are permuted so that eight lanes meet all banks.
  __device__ float4* piece(int slot, int n) const {
    const int lane = threadIdx.x % kWarp;
    return reinterpret_cast<float4*>(data_ + slot * kSlot + lane * kStates) +
           ((n / 4) ^ (lane / 2 % 4));
  }
  float* data_;
};

// What the way back needs of a block's tokens, beside the states.
struct BlockScalars {
  float* data;  // (4, kBlock, threads of the block)

  __device__ float& dt(int token, int thread) const { return at(0, token, thread); }
  __device__ float& u(int token, int thread) const { return at(1, token, thread); }
  __device__ float& dsum(int token, int thread) const { return at(2, token, thread); }
  __device__ float& slope(int token, int thread) const { return at(3, token, thread); }

 private:
  __device__ float& at(int which, int token, int thread) const {
    return data[(which * kBlock + token) * blockDim.x + thread];
  }
};

template <class T>
size_t shared_bytes(int64_t width) {
  return 2 * sizeof(SpanBC) + width * (4 * kBlock * sizeof(float)) +
         width * (kBlock + 1) * kStates * sizeof(T);
}

// Lane i gets the sum over the warp of values[i], in values[0]. Every step halves the values and
// adds over pairs of lanes.
template <int kHalf = kWarp / 2>
__device__ void transposed_sums(float (&values)[kWarp]) {
  const bool upper = threadIdx.x & kHalf;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float sent = upper ? values[i] : values[i + kHalf];
    const float kept = upper ? values[i + kHalf] : values[i];
    values[i] = kept + __shfl_xor_sync(kFullWarp, sent, kHalf);
  }
  if constexpr (kHalf > 1) transposed_sums<kHalf / 2>(values);
}

// A block of tokens of one span.
struct TokenBlock {
  const SpanBC& bc;
  unsigned starts;  // of the span's tokens
  int first;        // token within the span
  int count;
  int row;  // of the first token

  __device__ bool start(int i) const { return starts >> (first + i) & 1; }
};

template <class T, bool kSeveral>
struct BackwardWalk {
  const ScanInput<T>& in;
  const BackwardOutput<T> out;  // of this thread's channel, as the next four
  const ScanColumns<const T> u, delta, z, dy;
  const ScanThread me;
  const ScanChannel channel;
  const BlockScalars scalars;
  const History<T> history;
  float carried[kStates];  // gradient of h through the tokens behind
  float dA[kStates] = {};  // sum of dt times the gradient of the decay's exponent
  float ddt_bias = 0, dD = 0;

  // From h before the block to h behind it, without a trace.
  __device__ void skip(const TokenBlock& block, float (&h)[kStates]) const {
    ScanTokens<T> next_u, next_delta;
    const auto load = [&](int first) {
      next_u.load(u, block.row + first, block.row + block.count);
      next_delta.load(delta, block.row + first, block.row + block.count, kNoDelta);
    };
    load(0);
    for (int first = 0; first < kBlock; first += kScanAhead) {
      const ScanTokens<T> now_u = next_u, now_delta = next_delta;
      load(first + kScanAhead);
#pragma unroll
      for (int i = 0; i < kScanAhead; ++i) {
        const float dt = ScanStep(now_delta[i] + channel.dt_bias).dt;
        advance_states(channel, block.bc, block.first + first + i, dt, now_u[i],
                       block.start(first + i), h);
      }
    }
  }

  __device__ void run_forwards(const TokenBlock& block, float (&h)[kStates]) const {
    ScanTokens<T> next_u, next_delta, next_z, next_dy;
    const auto load = [&](int first) {
      const int row = block.row + first, end = block.row + block.count;
      next_u.load(u, row, end), next_delta.load(delta, row, end, kNoDelta);
      next_z.load(z, row, end), next_dy.load(dy, row, end);
    };
    load(0);
    history.store(0, h);
    for (int first = 0; first < kBlock; first += kScanAhead) {
      const ScanTokens<T> now_u = next_u, now_delta = next_delta, now_z = next_z, now_dy = next_dy;
      load(first + kScanAhead);
#pragma unroll
      for (int i = 0; i < kScanAhead; ++i) {
        const int token = first + i;
        const ScanStep step(now_delta[i] + channel.dt_bias);
        advance_states(channel, block.bc, block.first + token, step.dt, now_u[i],
                       block.start(token), h);
        history.store(token + 1, h);
        const float sum = dot_C(block.bc, block.first + token, h);
        const float dsum = gate(block.row + token, sum, now_u[i], now_z[i], now_dy[i],
                                me.active && token < block.count);
        // Threads without a channel of their own must not add to sums over channels.
        scalars.dt(token, threadIdx.x) = step.dt;
        scalars.u(token, threadIdx.x) = me.active ? now_u[i] : 0;
        scalars.dsum(token, threadIdx.x) = me.active ? dsum : 0;
        scalars.slope(token, threadIdx.x) = step.slope;
      }
    }
  }

  // Through y = sum * silu(z): writes dz and y if the token is present, returns the gradient of the
  // sum.
  __device__ float gate(int row, float sum, float u, float z, float dy, bool present) const {
    const float s = in.z ? sigmoid(z) : 1, silu = in.z ? z * s : 1;
    if (kSeveral && !out.first && present) sum += *out.sum_y.at(row);
    if (kSeveral && !out.last) {
      if (present) *out.sum_y.at(row) = sum;
      return dy * silu;
    }
    sum = fmaf(channel.D, u, sum);
    const T dz = from_float<T>(dy * sum * s * fmaf(z, 1 - s, 1)), y = from_float<T>(sum * silu);
    if (present && out.dz) *out.dz.at(row) = dz;
    if (present && out.y) *out.y.at(row) = y;
    return dy * silu;
  }

  // What the way back reads of a token.
  struct Kept {
    float dt, u, dsum, slope;
    typename History<T>::Packed before;
  };
  __device__ Kept kept_of(int token) const {
    return {scalars.dt(token, threadIdx.x), scalars.u(token, threadIdx.x),
            scalars.dsum(token, threadIdx.x), scalars.slope(token, threadIdx.x),
            history.load_packed(token)};
  }

  __device__ void run_backwards(const TokenBlock& block) {
    Kept next = kept_of(kBlock - 1);
#pragma unroll 2
    for (int token = kBlock - 1; token >= 0; --token) {
      const Kept now = next;
      next = kept_of(max(token - 1, 0));  // before this token's gradients are stored
      const float decay_dt = ScanChannel::decay_dt(now.dt, block.start(token));
      float B[kStates], C[kStates], before[kStates], dh[kStates];
      block.bc.B(block.first + token, B);
      block.bc.C(block.first + token, C);
      History<T>::unpack(now.before, before);
      float dinput[2] = {0, 0}, ddt[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        dh[n] = fmaf(C[n], now.dsum, carried[n]);
        dinput[n % 2] = fmaf(dh[n], B[n], dinput[n % 2]);
        carried[n] = exp2_approx(decay_dt * channel.A[n]) * dh[n];
        const float dexponent = carried[n] * before[n];  // of dt A
        ddt[n % 2] = fmaf(dexponent, channel.A[n], ddt[n % 2]);
        dA[n] = fmaf(dexponent, now.dt, dA[n]);
      }
      leave_gradient(token, dh, now.dt * now.u, now.dsum);
      finish(block.row + token, now, dinput[0] + dinput[1], (ddt[0] + ddt[1]) * kLn2,
             me.active && token < block.count);
    }
  }

  // du and ddelta from the gradients of dt u and, through the decays, of dt; these are sums over
  // all states.
  __device__ void finish(int row, const Kept& kept, float ddt_u, float ddt_decay, bool present) {
    if (kSeveral && !out.first && present)
      ddt_u += *out.sum_dinput.at(row), ddt_decay += *out.sum_ddt.at(row);
    if (kSeveral && !out.last) {
      if (present) *out.sum_dinput.at(row) = ddt_u, *out.sum_ddt.at(row) = ddt_decay;
      return;
    }
    const float ddelta = fmaf(kept.u, ddt_u, ddt_decay) * kept.slope;
    const T du = from_float<T>(fmaf(kept.dt, ddt_u, channel.D * kept.dsum));
    if (present) *out.du.at(row) = du;
    if (present) *out.ddelta.at(row) = from_float<T>(ddelta);
    ddt_bias += ddelta;
    dD = fmaf(kept.dsum, kept.u, dD);
  }

  // dB = sum over channels of dh dt u, dC = the same of h dsum. In f32 by the lanes, at once.
  __device__ void leave_gradient(int token, const float (&dh)[kStates], float dt_u, float dsum) {
    if constexpr (std::is_same_v<T, float>) {
      float h[kStates], products[kSums];
      History<float>::unpack(history.load_packed(token + 1), h);
#pragma unroll
      for (int n = 0; n < kStates; ++n)
        products[n] = dh[n] * dt_u, products[kStates + n] = h[n] * dsum;
      transposed_sums(products);
      __syncwarp();
      history.sums(token + 1)[threadIdx.x % kWarp] = products[0];
    } else {
      history.store(token + 1, dh);
    }
  }

  // In bf16 by tensor cores: for the 8 tokens from `first` on, sum over the warp's channels of what
  // the slots behind them hold, times weight(token, thread). A lane gets rows (states) and columns
  // (tokens) as an Accumulator has them.
  template <class Weight>
  __device__ Accumulator sum_channels(int first, const Weight& weight) const {
    const int lane = threadIdx.x % kWarp, group = lane / 4, pair = lane % 4;
    const int warp_begin = threadIdx.x - lane;
    FragmentB weights[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int thread = warp_begin + k * kMmaK + i * 8 + 2 * pair;
        weights[k].words[i] =
            pack_bf16(weight(first + group, thread), weight(first + group, thread + 1));
      }
    }
    Accumulator sums;
#pragma unroll
    for (int i = 0; i < kMmaN; ++i) {
      const SharedTile<kStates> tile = history.tile(first + i + 1);
      Accumulator product;  // of this token's states with all 8 tokens' weights
      mma(product, load_a_transposed(tile, 0, 0), weights[0]);
      mma(product, load_a_transposed(tile, 0, kMmaK), weights[1]);
      if (pair == i / 2) {
        sums.values[i % 2] = product.values[i % 2];
        sums.values[2 + i % 2] = product.values[2 + i % 2];
      }
    }
    return sums;
  }
  __device__ void store_sums(int first, int count, int which, const Accumulator& sums) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = first + Accumulator::column(i);
      if (token < count)
        history.sums(token + 1)[which * kStates + Accumulator::row(i)] = sums.values[i];
    }
  }

  // A block of tokens; h before it. Leaves the sums over the warp's channels in the slots.
  __device__ void run(const TokenBlock& block, float (&h)[kStates]) {
    run_forwards(block, h);
    if constexpr (std::is_same_v<T, float>) {
      __syncwarp();
      run_backwards(block);
    } else {
      const auto dt_u = [&](int token, int thread) {
        return scalars.dt(token, thread) * scalars.u(token, thread);
      };
      const auto dsum = [&](int token, int thread) { return scalars.dsum(token, thread); };
      __syncwarp();
      const Accumulator dC[2] = {sum_channels(0, dsum), sum_channels(8, dsum)};
      __syncwarp();
      run_backwards(block);
      __syncwarp();
      const Accumulator dB[2] = {sum_channels(0, dt_u), sum_channels(8, dt_u)};
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_sums(8 * half, block.count, 0, dB[half]);
        store_sums(8 * half, block.count, 1, dC[half]);
      }
    }
  }
};

// The warps' sums of a block of tokens, added up in order.
template <class T>
__device__ void store_block_sums(const ScanInput<T>& in, const BackwardOutput<T>& out,
                                 const TokenBlock& block, T* histories) {
  const int tile_row = int(blockIdx.x) % in.tiles * in.batch * in.tokens + block.row;
  const int warps = blockDim.x / kWarp;
  for (int i = threadIdx.x; i < block.count * kSums; i += blockDim.x) {
    float sum = 0;
    for (int warp = 0; warp < warps; ++warp) {
      const History<T> history(histories + warp * (kBlock + 1) * History<T>::kSlot);
      sum += history.sums(i / kSums + 1)[i % kSums];
    }
    *out.dBC.at(tile_row + i / kSums, i % kSums) = sum;
  }
}

// Bound by instructions: about 23 a token, channel and state, 330 with what a channel needs
// besides; of those 2.5 exponentials. 16 bytes in bf16, and 4 of the kept states, are a fraction of
// that.
template <class T, bool kSeveral>
__global__ void __launch_bounds__(kMaxScanThreads, 2)
    backward_kernel(ScanInput<T> in, BackwardOutput<T> out) {
  extern __shared__ __align__(128) char shared[];
  SpanBC* const staged = reinterpret_cast<SpanBC*>(shared);
  float* const scalars = reinterpret_cast<float*>(staged + 2);
  T* const histories = reinterpret_cast<T*>(scalars + 4 * kBlock * blockDim.x);
  const ScanThread me(in);
  const int warp = int(threadIdx.x) / kWarp;
  BackwardWalk<T, kSeveral> walk{
      .in = in,
      .out = out.of_channel(me.e),
      .u = in.u.from(me.e),
      .delta = in.delta.from(me.e),
      .z = in.z.from(me.e),
      .dy = in.dy.from(me.e),
      .me = me,
      .channel = {in, me.e},
      .scalars = {scalars},
      .history = History<T>(histories + warp * (kBlock + 1) * History<T>::kSlot)};
  load_states_or_zeros(out.entering, me.map_row, in.states, in.wide, walk.carried);
  staged[0].stage(in, me.b, me.last_span);
  for (int span = me.last_span; span >= me.first_span; --span) {
    __syncthreads();
    const int turn = me.last_span - span, begin = span * kSpan;
    if (span > me.first_span) {
      staged[(turn + 1) & 1].stage(in, me.b, span - 1);
      prefetch_span(in, walk.u, me.b, span - 1), prefetch_span(in, walk.delta, me.b, span - 1);
      prefetch_span(in, walk.z, me.b, span - 1), prefetch_span(in, walk.dy, me.b, span - 1);
      prefetch_to_l2(out.span_states.at(me.b * int(in.pieces.rows) + span - 1, me.e * in.N));
    }
    const unsigned starts = document_starts(in, me.b, span);
    const int count = min(kSpan, me.end - begin);
    const float* const kept = out.span_states.at(me.b * int(in.pieces.rows) + span, me.e * in.N);
    for (int first = (count - 1) / kBlock * kBlock; first >= 0; first -= kBlock) {
      const auto block_at = [&](int from) {
        return TokenBlock{.bc = staged[turn & 1],
                          .starts = starts,
                          .first = from,
                          .count = min(kBlock, count - from),
                          .row = me.row + begin + from};
      };
      float h[kStates];
      load_states(kept, in.states, in.wide, h);
      if (first > 0) walk.skip(block_at(0), h);
      const TokenBlock block = block_at(first);
      walk.run(block, h);
      __syncthreads();
      store_block_sums(in, out, block, histories);
      __syncthreads();
    }
  }
  if (!me.active) return;
  if (out.dinitial && me.first_span == 0)
    store_states(out.dinitial.at(me.state_row), in.states, in.wide, walk.carried);
#pragma unroll
  for (int n = 0; n < kStates; ++n)
    *out.parameters.at(me.map * (kStates + 2) + n, me.e) = walk.dA[n] * walk.channel.A[n] * kLn2;
  *out.parameters.at(me.map * (kStates + 2) + kStates, me.e) = walk.ddt_bias;
  *out.parameters.at(me.map * (kStates + 2) + kStates + 1, me.e) = walk.dD;
}

// dB and dC of a token: the tiles' sums in order. A thread has four states.
template <class T>
__global__ void add_tiles_kernel(const float* partial, int64_t tiles, int64_t rows, int states,
                                 ScanColumns<T> dB, ScanColumns<T> dC) {
  constexpr int kFours = kSums / 4;
  const int64_t i = blockIdx.x * int64_t(kReduceThreads) + threadIdx.x;
  if (i >= rows * kFours) return;
  const int row = int(i / kFours);
  const float4* const from = reinterpret_cast<const float4*>(partial);
  float4 sum = {0, 0, 0, 0};
#pragma unroll 8
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const float4 part = from[tile * rows * kFours + i];
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  const int column = int(i % kFours) * 4;
  T* const to = column < kStates ? dB.at(row, column) : dC.at(row, column - kStates);
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if (column % kStates + n < states) to[n] = from_float<T>(values[n]);
  }
}

// The parameters' gradients: the pieces' sums in order. A thread has one sum of a channel.
__global__ void add_parameters_kernel(const float* partial, int64_t maps, int64_t channels,
                                      int states, bool last, ScanColumns<float> dA_log,
                                      float* ddt_bias, float* dD) {
  const int64_t i = blockIdx.x * int64_t(kReduceThreads) + threadIdx.x;
  if (i >= (kStates + 2) * channels) return;
  const int which = int(i / channels), e = int(i % channels);
  if (which < kStates ? which >= states : !last) return;
  float sum = 0;
#pragma unroll 8
  for (int64_t map = 0; map < maps; ++map) sum += partial[map * (kStates + 2) * channels + i];
  float* const to = which < kStates    ? dA_log.at(e, which)
                    : which == kStates ? ddt_bias + e
                                       : dD + e;
  *to += sum;
}

template <class T>
void backward(const Context& ctx, const SelectiveScanBackward& args,
              const ConstTensorView& entering, const ScanSums& sums, const ScanPartials& partials) {
  for (int64_t first = 0; first < args.A_log.dim(1); first += kStates) {
    ScanInput<T> in(args, first);
    in.check_wide(args.span_states), in.check_wide(entering), in.check_wide(args.dinitial_state);
    const bool last = first + kStates >= in.N;
    const auto kernel = in.N > kStates ? backward_kernel<T, true> : backward_kernel<T, false>;
    const int64_t width = scan_width(in.batch, in.tokens, in.channels);
    launch(ctx, "selective_scan_backward", in.grid(shared_bytes<T>(width)), kernel, in,
           BackwardOutput<T>{.span_states = {args.span_states, first},
                             .entering = {entering, first},
                             .du = args.du,
                             .ddelta = args.ddelta,
                             .dz = args.dz,
                             .y = args.y,
                             .dinitial = {args.dinitial_state, first},
                             .dBC = partials.dBC.matrix(),
                             .parameters = partials.parameters.matrix(),
                             .sum_y = sums.y,
                             .sum_dinput = sums.dinput,
                             .sum_ddt = sums.ddt,
                             .first = first == 0,
                             .last = last});
    const int64_t rows = int64_t{in.batch} * in.tokens;
    launch(
        ctx, "selective_scan_backward",
        {.blocks = unsigned(ceil_div(rows * kSums / 4, kReduceThreads)), .threads = kReduceThreads},
        add_tiles_kernel<T>, pointer<float>(partials.dBC), in.tiles, rows, in.states,
        ScanColumns<T>(args.dB, first), ScanColumns<T>(args.dC, first));
    launch(ctx, "selective_scan_backward",
           {.blocks = unsigned(ceil_div((kStates + 2) * in.channels, kReduceThreads)),
            .threads = kReduceThreads},
           add_parameters_kernel, pointer<float>(partials.parameters), in.batch * in.pieces.count,
           in.channels, in.states, last, ScanColumns<float>(args.dA_log, first),
           pointer<float>(args.ddt_bias), pointer<float>(args.dD));
  }
}

}  // namespace

void selective_scan_backward(const Context& ctx, const SelectiveScanBackward& args,
                             const ScanMaps& maps, const ScanSums& sums,
                             const ScanPartials& partials) {
  if (args.u.numel() == 0) return;
  dispatch_float(args.u.dtype, [&]<class T>() {
    if (maps.state) {
      launch_reverse_folds<T>(ctx,
                              {.dy = args.dy,
                               .delta = args.delta,
                               .dt_bias = args.dt_bias,
                               .A_log = args.A_log,
                               .C = args.C,
                               .z = args.z,
                               .doc_begin = args.doc_begin,
                               .dinitial_state = maps.state},
                              maps.dt_sum);
      launch_chain(ctx,
                   {.A_log = args.A_log,
                    .doc_begin = args.doc_begin,
                    .entering = args.dfinal_state,
                    .reverse = true},
                   maps);
    }
    backward<T>(ctx, args, maps.state ? ConstTensorView(maps.state) : args.dfinal_state, sums,
                partials);
  });
}

}  // namespace sluice::cuda
