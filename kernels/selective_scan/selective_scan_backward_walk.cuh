// The backward's walk: the threads of two channels run a span forwards from its kept state, leaving
// h of every token in shared memory, and then backwards.
#pragma once

#include <type_traits>

#include "kernels/selective_scan/selective_scan_walk.cuh"

namespace sluice::cuda {

constexpr int kSums = 2 * kStates;
constexpr int kGroup = kMmaN;  // tokens whose sums over channels are taken at once
static_assert(kStates == kMmaM && kWarpChannels == kMmaK, "a warp's token is a tile of A");

__device__ inline void unpack_four(const uint2& four, float (&to)[4]) {
  const float2 low = unpack_bf16(four.x), high = unpack_bf16(four.y);
  to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
}

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
  // Of channel c of the thread's two.
  __device__ void store(int slot, int c, const float (&h)[kOwn]) const {
    own(slot, c) = {pack_bf16(h[0], h[1]), pack_bf16(h[2], h[3])};
  }
  __device__ Packed load(int slot, int c) const { return own(slot, c); }
  __device__ static void unpack(const Packed& packed, float (&h)[kOwn]) { unpack_four(packed, h); }
  // States x channels, an operand: first the first channels of all pairs, then the second.
  __device__ FragmentA transposed(int slot) const {
    const int lane = threadIdx.x % kWarp;
    FragmentA a;
    ldmatrix_x4_transposed(
        a.words, reinterpret_cast<const Bf16*>(data_ + slot * kSlot +
                                               place(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8)));
    return a;
  }
  // The other operand for a token, from the weights of channels 4 i .. 4 i + 3 with i = lane % 4.
  __device__ static FragmentB weights(float w0, float w1, float w2, float w3) {
    return {{pack_bf16(w0, w2), pack_bf16(w1, w3)}};
  }

 private:
  static constexpr int kRow = kStates * 2;
  // Pieces of 16 bytes are permuted so that ldmatrix meets all banks.
  __device__ static int place(int row, int state) {
    return row * kRow + ((state / 8) ^ (row / 4 & 1)) * 16 + state % 8 * 2;
  }
  __device__ Packed& own(int slot, int c) const {
    return *reinterpret_cast<Packed*>(own_ + slot * kSlot + c * (kWarpChannels / kPair * kRow));
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
      : data_(data), own_(data + threadIdx.x % kWarp * sizeof(Packed)) {}
  __device__ float* sums(int slot) const { return reinterpret_cast<float*>(data_ + slot * kSlot); }
  __device__ void store(int slot, int c, const float (&h)[kOwn]) const {
    own(slot, c) = {h[0], h[1], h[2], h[3]};
  }
  __device__ Packed load(int slot, int c) const { return own(slot, c); }
  __device__ static void unpack(const Packed& four, float (&h)[kOwn]) { unpack_four(four, h); }

 private:
  __device__ Packed& own(int slot, int c) const {
    return *reinterpret_cast<Packed*>(own_ + slot * kSlot + c * (kWarp * sizeof(Packed)));
  }
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

// What the walk backwards reads of a token.
template <class T>
struct BackwardToken : WalkToken {
  float dsum[kPair];
  typename History<T>::Packed before[kPair];
};

// The walk of one thread of two channels.
template <class T>
struct BackwardWalk {
  const ScanWalker me;
  const SpanBC<T>& bc;
  const SpanPairs::Column steps;
  const SpanFloats::Column dsums, sums;
  const History<T> history;
  float carried[kPair][kOwn] = {};  // gradient of h through the tokens behind
  float dA[kPair][kOwn] = {};       // sum of dt times the gradient of the decay's exponent

  __device__ void run_forwards(float (&h)[kPair][kOwn]) const {
#pragma unroll
    for (int c = 0; c < kPair; ++c) history.store(0, c, h[c]);
    const auto keep = [&](int token, int c) { history.store(token + 1, c, h[c]); };
    const auto leave = [&](int token, float2 both) { sums[token] = both; };
    walk_span(me, steps, bc, h, keep, leave);
  }

  __device__ BackwardToken<T> token(int token) const {
    BackwardToken<T> read;
    read.load(steps, bc, token, me.lane);
    const float2 dsum = dsums[token];
    read.dsum[0] = dsum.x, read.dsum[1] = dsum.y;
#pragma unroll
    for (int c = 0; c < kPair; ++c) read.before[c] = history.load(token, c);
    return read;
  }

  // Tokens first + kLanes - 1 .. first; `next` is the first of these, and then the one after them.
  // Read a token ahead, since reads do not pass the stores of histories: 7 % of the kernel's time.
  __device__ void run_backwards(int first, BackwardToken<T>& next) {
    float dinputs[kPair][kLanes], ddts[kPair][kLanes];
#pragma unroll
    for (int i = kLanes - 1; i >= 0; --i) {
      const BackwardToken<T> now = next;
      next = token(max(first + i - 1, 0));
      float dh[kPair][kOwn];
#pragma unroll
      for (int c = 0; c < kPair; ++c) {
        float before[kOwn];
        History<T>::unpack(now.before[c], before);
        const float dt = now.dt[c];
        float dinput = 0, ddt = 0;
#pragma unroll
        for (int n = 0; n < kOwn; ++n) {
          dh[c][n] = fmaf(now.C[n], now.dsum[c], carried[c][n]);
          dinput = fmaf(dh[c][n], now.B[n], dinput);
          carried[c][n] = exp2_approx(dt * me.A[c][n]) * dh[c][n];
          const float dexponent = carried[c][n] * before[n];  // of dt A
          ddt = fmaf(dexponent, me.A[c][n], ddt);
          dA[c][n] = fmaf(dexponent, dt, dA[c][n]);
        }
        dinputs[c][i] = dinput, ddts[c][i] = ddt;
      }
      leave_gradient(first + i, dh, now);
    }
    float dinput[kPair], ddt[kPair];
#pragma unroll
    for (int c = 0; c < kPair; ++c) {
      dinput[c] = sum_of_lanes(dinputs[c], me.lane);
      ddt[c] = sum_of_lanes(ddts[c], me.lane) * kLn2;
    }
    __syncwarp();  // all four have read these tokens
    dsums[first + me.lane] = {dinput[0], dinput[1]};
    reinterpret_cast<float2*>(&steps[first + me.lane])[1] = {ddt[0], ddt[1]};
  }

  // dB = sum over channels of dh dt u, dC = the same of h dsum. In f32 by the lanes, at once.
  __device__ void leave_gradient(int token, const float (&dh)[kPair][kOwn],
                                 const BackwardToken<T>& now) const {
    if constexpr (std::is_same_v<T, float>) {
      float values[2 * kOwn] = {};
#pragma unroll
      for (int c = 0; c < kPair; ++c) {
        float h[kOwn];
        History<float>::unpack(history.load(token + 1, c), h);
#pragma unroll
        for (int n = 0; n < kOwn; ++n) {
          values[n] = fmaf(dh[c][n], now.dt_u[c], values[n]);
          values[kOwn + n] = fmaf(h[n], now.dsum[c], values[kOwn + n]);
        }
      }
      add_channels(values);
      __syncwarp();                                    // all have read the slot
      const int which = threadIdx.x % kWarp / kLanes;  // of the values
      history.sums(token + 1)[which / kOwn * kStates + me.lane * kOwn + which % kOwn] = values[0];
    } else {
#pragma unroll
      for (int c = 0; c < kPair; ++c) history.store(token + 1, c, dh[c]);
    }
  }
  // The sum over the warp's pairs of values[i] goes to values[0] of pair i's threads. Every step
  // halves the values and adds over two pairs.
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

  // In bf16 by tensor cores, kGroup tokens at a time: a product has the states of one token, and
  // of the other operand only this token's column is not zero.
  __device__ Accumulator sum_channels(int first, const FragmentB& weights) const {
    const int token = threadIdx.x % kWarp / kLanes;  // of the weights
    Accumulator sums;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const FragmentB one = {
          {token == i ? weights.words[0] : 0, token == i ? weights.words[1] : 0}};
      mma(sums, history.transposed(first + i + 1), one);
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
  __device__ void run(BackwardRoom<T>& room, float (&h)[kPair][kOwn]) {
    run_forwards(h);
    BackwardToken<T> next = token(kSpan - 1);
#pragma unroll 1
    for (int first = kSpan - kGroup; first >= 0; first -= kGroup) {
      if constexpr (std::is_same_v<T, float>) {
#pragma unroll 1
        for (int half = kGroup - kLanes; half >= 0; half -= kLanes)
          run_backwards(first + half, next);
      } else {
        // Weights of token first + lane / 4, of four channels.
        const int lane = threadIdx.x % kWarp, read = first + lane / kLanes;
        const int column = me.column / kWarpChannels * kWarpChannels + lane % kLanes * 4;
        const float4 dsum = room.dsum.unit(read, column);
        const float4 step = room.pairs.two(read, column), step2 = room.pairs.two(read, column + 2);
        __syncwarp();
        const Accumulator dC =
            sum_channels(first, History<T>::weights(dsum.x, dsum.y, dsum.z, dsum.w));
        __syncwarp();
        run_backwards(first + kLanes, next), run_backwards(first, next);
        __syncwarp();
        const Accumulator dB =
            sum_channels(first, History<T>::weights(step.z, step.w, step2.z, step2.w));
        __syncwarp();
        store_sums(first, 0, dB), store_sums(first, 1, dC);
      }
    }
  }
};

}  // namespace sluice::cuda
