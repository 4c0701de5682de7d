// The backward. The threads of a channel run a span forwards from its kept state, leaving h of
// every token in shared memory, and then backwards.
#include <type_traits>

#include "kernels/selective_scan/selective_scan_walk.cuh"

namespace sluice::cuda {

namespace {

constexpr int kSums = 2 * kStates;
constexpr int kReduceThreads = 256;
constexpr int kGroup = kMmaN;  // tokens whose sums over channels are taken at once
static_assert(kStates == kMmaM && 2 * kWarpChannels == kMmaK, "the tiles of a warp are for these");

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
  bool wide, wide_BC;                             // whether activations move by 16 bytes; B and C
};

// h before the span and after each of its tokens, of a warp's channels: kSpan + 1 slots. Later a
// slot takes the gradient of h, and after that the token's kSums sums over channels. In bf16 a slot
// is an operand of tensor cores; the recurrence itself stays in f32 registers. Slots are 16 bytes
// longer than their states: so the sums of several tokens meet all banks.
template <class T>
class History;

template <>
class History<Bf16> {
 public:
  static constexpr int kSlot = kWarpChannels * kStates * 2 + 16;  // bytes
  static constexpr int kBytes = (kSpan + 1) * kSlot;
  using Packed = uint2;

  __device__ explicit History(char* data)
      : data_(data),
        own_(data + place(threadIdx.x % kWarp / kLanes, threadIdx.x % kLanes * kOwn)) {}
  __device__ float* sums(int slot) const { return reinterpret_cast<float*>(data_ + slot * kSlot); }
  __device__ void store(int slot, const float (&h)[kOwn]) const {
    *reinterpret_cast<uint2*>(own_ + slot * kSlot) = {pack_bf16(h[0], h[1]), pack_bf16(h[2], h[3])};
  }
  __device__ Packed load(int slot) const {
    return *reinterpret_cast<const uint2*>(own_ + slot * kSlot);
  }
  __device__ static void unpack(const Packed& packed, float (&h)[kOwn]) { unpack_four(packed, h); }
  // States x (channels of `slot`, then of the next): an operand.
  __device__ FragmentA transposed(int slot) const {
    const int lane = threadIdx.x % kWarp;
    FragmentA a;
    ldmatrix_x4_transposed(a.words,
                           reinterpret_cast<const Bf16*>(data_ + (slot + lane / 16) * kSlot +
                                                         place(lane % 8, lane / 8 % 2 * 8)));
    return a;
  }

 private:
  // Pieces of 16 bytes are permuted so that ldmatrix meets all banks.
  __device__ static int place(int channel, int state) {
    return channel * kStates * 2 + ((state / 8) ^ (channel / 4 & 1)) * 16 + state % 8 * 2;
  }
  char *data_, *own_;
};

template <>
class History<float> {
 public:
  static constexpr int kSlot = kWarpChannels * kStates * 4 + 16;
  static constexpr int kBytes = (kSpan + 1) * kSlot;
  using Packed = float4;

  __device__ explicit History(char* data)
      : data_(data), own_(data + threadIdx.x % kWarp * sizeof(float4)) {}
  __device__ float* sums(int slot) const { return reinterpret_cast<float*>(data_ + slot * kSlot); }
  __device__ void store(int slot, const float (&h)[kOwn]) const {
    *reinterpret_cast<float4*>(own_ + slot * kSlot) = {h[0], h[1], h[2], h[3]};
  }
  __device__ Packed load(int slot) const {
    return *reinterpret_cast<const float4*>(own_ + slot * kSlot);
  }
  __device__ static void unpack(const Packed& four, float (&h)[kOwn]) { unpack_four(four, h); }

 private:
  char *data_, *own_;
};

// A block's shared memory; the warps' histories follow.
template <class T>
struct BackwardRoom {
  SpanBC<T> bc;
  SpanPairs pairs;  // dt and dt u; behind the walk the gradients of dt u and, through decays, of dt
  SpanFloats dsum;  // gradient of the sum over n of C h
  SpanFloats sum;   // that sum
  alignas(16) float dt_bias[kMaxWidth], D[kMaxWidth];
};
static_assert(sizeof(BackwardRoom<Bf16>) % 16 == 0 && sizeof(BackwardRoom<float>) % 16 == 0,
              "histories are aligned to 16 bytes");

template <class T>
size_t shared_bytes(int64_t width) {
  return sizeof(BackwardRoom<T>) + width / kWarpChannels * History<T>::kBytes;
}

// What a cell needs of its span.
template <class T>
struct BackwardCell {
  Eight<T> u, delta, z, dy;
  bool start;

  __device__ void load(const ScanInput<T>& in, const ScanBlock& block, const ScanCell& cell,
                       int span, bool wide) {
    const int present = cell.present_in(span * kSpan, block.end);
    const int t = span * kSpan + cell.token, row = block.row + t;
    u.load(in.u.at(row, cell.e), present, wide);
    delta.load(in.delta.at(row, cell.e), present, wide, kNoDelta);
    if (in.z) z.load(in.z.at(row, cell.e), present, wide);
    dy.load(in.dy.at(row, cell.e), present, wide);
    start = present > 0 && *in.doc_begin.at(block.b, t) == t;
  }
};

// The walk of one thread of a channel.
template <class T>
struct BackwardWalk {
  const ScanWalker me;
  const SpanBC<T>& bc;
  const SpanPairs::Column steps;
  const SpanFloats::Column dsums, sums;
  const History<T> history;
  float carried[kOwn] = {};  // gradient of h through the tokens behind
  float dA[kOwn] = {};       // sum of dt times the gradient of the decay's exponent

  __device__ void run_forwards(float (&h)[kOwn]) const {
    history.store(0, h);
#pragma unroll 2
    for (int first = 0; first < kSpan; first += kLanes) {
      float products[kLanes];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const float2 step = steps[first + i];
        float B[kOwn], C[kOwn];
        bc.load(first + i, me.lane, B, C);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kOwn; ++n) {
          h[n] = fmaf(exp2_approx(step.x * me.A[n]), h[n], step.y * B[n]);
          sum = fmaf(C[n], h[n], sum);
        }
        products[i] = sum;
        history.store(first + i + 1, h);
      }
      const float sum = sum_of_lanes(products, me.lane);
      sums[first + me.lane] = sum;
    }
  }

  // Tokens first + kLanes - 1 .. first.
  __device__ void run_backwards(int first) {
    float dinputs[kLanes], ddts[kLanes];
#pragma unroll
    for (int i = kLanes - 1; i >= 0; --i) {
      const int token = first + i;
      const float2 step = steps[token];
      const float dsum = dsums[token];
      float B[kOwn], C[kOwn];
      bc.load(token, me.lane, B, C);
      float before[kOwn], dh[kOwn];
      History<T>::unpack(history.load(token), before);
      float dinput = 0, ddt = 0;
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        dh[n] = fmaf(C[n], dsum, carried[n]);
        dinput = fmaf(dh[n], B[n], dinput);
        carried[n] = exp2_approx(step.x * me.A[n]) * dh[n];
        const float dexponent = carried[n] * before[n];  // of dt A
        ddt = fmaf(dexponent, me.A[n], ddt);
        dA[n] = fmaf(dexponent, step.x, dA[n]);
      }
      dinputs[i] = dinput, ddts[i] = ddt;
      leave_gradient(token, dh, step.y, dsum);
    }
    const float dinput = sum_of_lanes(dinputs, me.lane), ddt = sum_of_lanes(ddts, me.lane);
    __syncwarp();  // all four have read these tokens
    dsums[first + me.lane] = dinput;
    steps[first + me.lane].y = ddt * kLn2;
  }

  // dB = sum over channels of dh dt u, dC = the same of h dsum. In f32 by the lanes, at once.
  __device__ void leave_gradient(int token, const float (&dh)[kOwn], float dt_u, float dsum) const {
    if constexpr (std::is_same_v<T, float>) {
      float h[kOwn], values[2 * kOwn];
      History<float>::unpack(history.load(token + 1), h);
#pragma unroll
      for (int n = 0; n < kOwn; ++n) values[n] = dh[n] * dt_u, values[kOwn + n] = h[n] * dsum;
      add_channels(values);
      __syncwarp();                                    // all have read the slot
      const int which = threadIdx.x % kWarp / kLanes;  // of the values
      history.sums(token + 1)[which / kOwn * kStates + me.lane * kOwn + which % kOwn] = values[0];
    } else {
      history.store(token + 1, dh);
    }
  }
  // The sum over the warp's channels of values[i] goes to values[0] of channel i's threads. Every
  // step halves the values and adds over pairs of channels.
  template <int kHalf = kOwn>
  __device__ static void add_channels(float (&values)[2 * kOwn]) {
    const bool upper = threadIdx.x & (kHalf * kLanes);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = upper ? values[i] : values[i + kHalf];
      const float kept = upper ? values[i + kHalf] : values[i];
      values[i] = kept + __shfl_xor_sync(kFullWarp, sent, kHalf * kLanes);
    }
    if constexpr (kHalf > 1) add_channels<kHalf / 2>(values);
  }

  // In bf16 by tensor cores, kGroup tokens at a time: a product has the states of two tokens, and
  // of the other operand only these tokens' columns are not zero.
  __device__ Accumulator sum_channels(int first, uint32_t weights) const {
    const int token = threadIdx.x % kWarp / kLanes;  // of the weights
    Accumulator sums;
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
      const FragmentB two = {{token == i ? weights : 0, token == i + 1 ? weights : 0}};
      mma(sums, history.transposed(first + i + 1), two);
    }
    return sums;
  }
  __device__ void store_sums(int first, int which, const Accumulator& sums) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* const to = history.sums(first + Accumulator::column(i) + 1);
      to[which * kStates + Accumulator::row(i)] = sums.values[i];
    }
  }

  // A span; h before it. Leaves the sums over the warp's channels in the slots.
  __device__ void run(BackwardRoom<T>& room, float (&h)[kOwn]) {
    run_forwards(h);
#pragma unroll 1
    for (int first = kSpan - kGroup; first >= 0; first -= kGroup) {
      if constexpr (std::is_same_v<T, float>) {
#pragma unroll 1
        for (int half = kGroup - kLanes; half >= 0; half -= kLanes) run_backwards(first + half);
      } else {
        // Of token first + lane / 4: two channels.
        const int lane = threadIdx.x % kWarp, token = first + lane / kLanes;
        const int column = me.column - lane / kLanes + lane % kLanes * 2;
        const float2 dsum = room.dsum.two(token, column);
        const float4 step = room.pairs.two(token, column);
        __syncwarp();
        const Accumulator dC = sum_channels(first, pack_bf16(dsum.x, dsum.y));
        __syncwarp();
        run_backwards(first + kLanes), run_backwards(first);
        __syncwarp();
        const Accumulator dB = sum_channels(first, pack_bf16(step.y, step.w));
        __syncwarp();
        store_sums(first, 0, dB), store_sums(first, 1, dC);
      }
    }
  }
};

// The warps' sums of a span's tokens, added up in order.
template <class T>
__device__ void store_span_sums(const ScanInput<T>& in, const BackwardOutput<T>& out,
                                const ScanBlock& block, int span, char* histories) {
  const int begin = span * kSpan, count = min(kSpan, block.end - begin);
  const int tile_row = block.tile * in.batch * in.tokens + block.row + begin;
  const int warps = in.width / kWarpChannels;
  for (int i = threadIdx.x; i < count * kSums / 4; i += blockDim.x) {
    const int token = i / (kSums / 4), first = i % (kSums / 4) * 4;
    float4 sum = {0, 0, 0, 0};
    for (int warp = 0; warp < warps; ++warp) {
      const char* const slot =
          histories + warp * History<T>::kBytes + (token + 1) * History<T>::kSlot;
      const float4 part = *reinterpret_cast<const float4*>(slot + first * sizeof(float));
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    *reinterpret_cast<float4*>(out.dBC.at(tile_row + token, first)) = sum;
  }
}

// The parameters' gradients of 8 channels, over the tokens of one cell.
struct CellSums {
  float ddt_bias[kEight] = {}, dD[kEight] = {};
};

// What the walk needs of a cell.
template <class T>
__device__ void prepare_cell(const ScanInput<T>& in, const BackwardCell<T>& now,
                             const ScanCell& cell, BackwardRoom<T>& room) {
  float bias[kEight], dt[kEight], dsum[kEight];
  load_eight(room.dt_bias + cell.column, bias);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    dt[i] = ScanStep(now.delta[i] + bias[i]).dt;
    dsum[i] = now.dy[i];
  }
  if (in.z) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) dsum[i] *= silu(now.z[i]);
  }
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    room.pairs.two_of(cell, i) = {now.start ? kStartDt : dt[i], dt[i] * now.u[i],
                                  now.start ? kStartDt : dt[i + 1], dt[i + 1] * now.u[i + 1]};
  }
#pragma unroll
  for (int i = 0; i < kEight; i += 4)
    room.dsum.four(cell, i) = {dsum[i], dsum[i + 1], dsum[i + 2], dsum[i + 3]};
}

// What the walk leaves of a cell.
struct WalkedCell {
  float sum[kEight];    // over n of C h
  float ddt_u[kEight];  // gradient of dt u
  float dt[kEight];     // of the decays
  float ddt[kEight];    // its gradient

  template <class T>
  __device__ WalkedCell(const ScanCell& cell, BackwardRoom<T>& room) {
#pragma unroll
    for (int i = 0; i < kEight; i += 4) {
      const float4 sums = room.sum.four(cell, i), dinputs = room.dsum.four(cell, i);
      sum[i] = sums.x, sum[i + 1] = sums.y, sum[i + 2] = sums.z, sum[i + 3] = sums.w;
      ddt_u[i] = dinputs.x, ddt_u[i + 1] = dinputs.y;
      ddt_u[i + 2] = dinputs.z, ddt_u[i + 3] = dinputs.w;
    }
#pragma unroll
    for (int i = 0; i < kEight; i += 2) {
      const float4 two = room.pairs.two_of(cell, i);
      dt[i] = two.x, ddt[i] = two.y, dt[i + 1] = two.z, ddt[i + 1] = two.w;
    }
  }
  // Blocks of states, but for the last, leave their sums behind; the others add them.
  template <class T>
  __device__ void add_blocks(const BackwardOutput<T>& out, int row, int e, int present) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      if (i >= present) continue;
      float* const of[3] = {out.sum_y.at(row, e + i), out.sum_dinput.at(row, e + i),
                            out.sum_ddt.at(row, e + i)};
      if (!out.first) sum[i] += *of[0], ddt_u[i] += *of[1], ddt[i] += *of[2];
      if (!out.last) *of[0] = sum[i], *of[1] = ddt_u[i], *of[2] = ddt[i];
    }
  }
};

// What a cell writes. kSeveral: sums of other blocks of states.
template <bool kSeveral, class T>
__device__ void finish_cell(const ScanInput<T>& in, const BackwardOutput<T>& out,
                            const BackwardCell<T>& now, const ScanCell& cell, int row, int present,
                            BackwardRoom<T>& room, CellSums& sums) {
  WalkedCell walked(cell, room);
  if (kSeveral) walked.add_blocks(out, row, cell.e, present);
  if (kSeveral && !out.last) return;
  float bias[kEight], D[kEight];
  load_eight(room.dt_bias + cell.column, bias), load_eight(room.D + cell.column, D);
  if (now.start) {  // the walk saw another dt
#pragma unroll
    for (int i = 0; i < kEight; ++i) walked.dt[i] = ScanStep(now.delta[i] + bias[i]).dt;
  }
  float du[kEight], ddelta[kEight], dz[kEight], y[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float x = now.delta[i] + bias[i];
    const float u = now.u[i], dy = now.dy[i], z = in.z ? now.z[i] : 1.0f;
    const float s = in.z ? sigmoid(z) : 1.0f, dsum = dy * z * s;
    const float sum = fmaf(D[i], u, walked.sum[i]);
    dz[i] = dy * sum * s * fmaf(z, 1 - s, 1);
    y[i] = sum * z * s;
    ddelta[i] = fmaf(u, walked.ddt_u[i], walked.ddt[i]) * sigmoid(x);  // the slope of softplus
    du[i] = fmaf(walked.dt[i], walked.ddt_u[i], D[i] * dsum);
    sums.ddt_bias[i] += ddelta[i];
    sums.dD[i] = fmaf(dsum, u, sums.dD[i]);
  }
  Eight<T>::of(du).store(out.du.at(row, cell.e), present, out.wide);
  Eight<T>::of(ddelta).store(out.ddelta.at(row, cell.e), present, out.wide);
  if (out.dz) Eight<T>::of(dz).store(out.dz.at(row, cell.e), present, out.wide);
  if (out.y) Eight<T>::of(y).store(out.y.at(row, cell.e), present, out.wide);
}

// The piece's share of the parameters' gradients.
template <class T>
__device__ void store_parameters(const ScanInput<T>& in, const BackwardOutput<T>& out,
                                 const ScanBlock& block, const ScanCell& cell,
                                 const BackwardWalk<T>& walk, const CellSums& sums,
                                 SpanPairs& pairs) {
  const int first_row = block.map * (kStates + 2);
  const ScanWalker& me = walk.me;
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    if (me.active)
      *out.parameters.at(first_row + me.lane * kOwn + n, me.e) = walk.dA[n] * me.A[n] * kLn2;
  }
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    pairs.two_of(cell, i) = {sums.ddt_bias[i], sums.dD[i], sums.ddt_bias[i + 1], sums.dD[i + 1]};
  }
  __syncthreads();
  if (me.lane != 0 || !me.active) return;
  float ddt_bias = 0, dD = 0;
  for (int token = 0; token < kSpan; ++token) {
    const float2 part = pairs.column(me.column)[token];
    ddt_bias += part.x, dD += part.y;
  }
  *out.parameters.at(first_row + kStates, me.e) = ddt_bias;
  *out.parameters.at(first_row + kStates + 1, me.e) = dD;
}

// Bound by instructions: 34 a token, channel and state with what a channel needs besides, of those
// 2.5 exponentials; an H100 issues 64 % of what it could. 16 bytes in bf16, and 4 of the kept
// states, are a fraction of that. More warps do not fit: histories fill shared memory.
template <class T, bool kSeveral>
__global__ void __launch_bounds__(kMaxScanThreads, std::is_same_v<T, float> ? 1 : 2)
    backward_kernel(ScanInput<T> in, BackwardOutput<T> out) {
  extern __shared__ __align__(128) char shared[];
  BackwardRoom<T>& room = *reinterpret_cast<BackwardRoom<T>*>(shared);
  char* const histories = shared + sizeof(BackwardRoom<T>);
  const ScanBlock block(in);
  const ScanCell cell(in, block);
  const ScanWalker me(in, block);
  BackwardWalk<T> walk{.me = me,
                       .bc = room.bc,
                       .steps = room.pairs.column(me.column),
                       .dsums = room.dsum.column(me.column),
                       .sums = room.sum.column(me.column),
                       .history = History<T>(histories + threadIdx.x / kWarp * History<T>::kBytes)};
  if (me.lane == 0) {
    room.dt_bias[me.column] = in.dt_bias[me.e];
    room.D[me.column] = in.D[me.e];
  }
  if (out.entering) {
    const float* const from = out.entering.at(block.map * in.channels + me.e);
    me.load_states(from, in.states, in.wide, walk.carried);
  }
  CellSums sums;
  __syncthreads();
  for (int span = block.last_span; span >= block.first_span; --span) {
    BackwardCell<T> now;
    now.load(in, block, cell, span, out.wide);
    typename SpanBC<T>::Fetched fetched;
    fetched.load(in, block, span, out.wide_BC);
    float h[kOwn];
    me.load_states(out.span_states.at(block.b * int(in.pieces.rows) + span, me.e * in.N), in.states,
                   in.wide, h);
    prepare_cell(in, now, cell, room);
    room.bc.put(fetched);
    __syncthreads();
    if (span > block.first_span) {
      prefetch_cell(in, block, cell, span - 1);
      prefetch_to_l2(out.span_states.at(block.b * int(in.pieces.rows) + span - 1, me.e * in.N));
    }
    walk.run(room, h);
    __syncthreads();
    store_span_sums(in, out, block, span, histories);
    finish_cell<kSeveral>(in, out, now, cell, block.row + span * kSpan + cell.token,
                          cell.present_in(span * kSpan, block.end), room, sums);
  }
  if (out.dinitial && block.first_span == 0) {
    float* const to = out.dinitial.at(block.b * in.channels + me.e);
    me.store_states(to, in.states, in.wide, walk.carried);
  }
  store_parameters(in, out, block, cell, walk, sums, room.pairs);
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
    const Dims& dims = args.u.dims;
    ScanInput<T> in(args, first, scan_width(dims[0], dims[1], dims[2]));
    in.check_wide(args.span_states), in.check_wide(entering), in.check_wide(args.dinitial_state);
    const bool last = first + kStates >= in.N;
    const auto kernel = in.N > kStates ? backward_kernel<T, true> : backward_kernel<T, false>;
    launch(ctx, "selective_scan_backward", in.grid(kLanes, shared_bytes<T>(in.width)), kernel, in,
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
                             .last = last,
                             .wide = scan_rows_wide(dims[2], args.u, args.delta, args.z, args.dy,
                                                    args.du, args.ddelta, args.dz, args.y),
                             .wide_BC = in.states == kStates && first % kEight == 0 &&
                                        scan_rows_wide(0, args.B, args.C)});
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
