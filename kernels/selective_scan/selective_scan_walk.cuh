// How the forward and the backward take a span of tokens: a block has neighbouring channels of a
// piece of a row, and four threads for two channels.
//
//   1. A thread takes cells of 8 channels of one token, 16 bytes of every tensor in bf16, and
//      leaves in shared memory what the recurrence needs of them.
//   2. The four threads of two channels walk over the tokens with 4 of the 16 states of either in
//      registers. Sums over states go back to shared memory.
//   3. The threads of 1 finish their cells.
//
// So a token's logarithms and gates are computed once a channel and its rows move by 16 bytes,
// while in the walk, which is bound by instructions, B and C are read once for two channels.
#pragma once

#include "kernels/core/packs.h"
#include "kernels/device/mma.cuh"
#include "kernels/selective_scan/selective_scan_cuda.cuh"

namespace sluice::cuda {

constexpr int kPair = 2;                               // channels of a thread in step 2
constexpr int kLanes = 4;                              // threads of a pair
constexpr int kOwn = kStates / kLanes;                 // states of a thread, of either channel
constexpr int kWarpChannels = kWarp / kLanes * kPair;  // channels of a warp
constexpr int kChannelThreads = kLanes / kPair;        // threads of a block for every channel
constexpr int kEight = 8;                              // channels of a cell
constexpr int kCells = 2;                              // of a thread in a span
constexpr int kMaxWidth = 64;                          // channels of a block
constexpr int kMaxScanThreads = kChannelThreads * kMaxWidth;
static_assert(kOwn == 4 && kCells * kChannelThreads * kEight == kSpan,
              "the threads of a block have the cells of a span");

// dt as decays see it where a document starts, and the A nearest to 0: their product makes every
// decay 0, and 0 times either is 0.
constexpr float kStartDt = FLT_MAX;
constexpr float kLeastA = -1e-30f;

// --- 8 neighbouring channels of a token ----------------------------------------------------------

// `load` takes the first `present` from `from` on, and `none` for the others. Wide: all are there
// or none, and they are aligned to 16 bytes.
template <class T>
struct Eight;

template <>
struct Eight<float> {
  float values[kEight];

  __device__ static Eight of(const float (&x)[kEight]) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < kEight; ++i) eight.values[i] = x[i];
    return eight;
  }
  __device__ float operator[](int i) const { return values[i]; }
  __device__ void load(const float* from, int present, bool wide, float none = 0) {
    if (wide && present > 0) {
      const float4 low = *reinterpret_cast<const float4*>(from);
      const float4 high = *reinterpret_cast<const float4*>(from + 4);
      *this = of({low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w});
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i) values[i] = i < present ? from[i] : none;
    }
  }
  __device__ void store(float* to, int present, bool wide) const {
    if (wide && present > 0) {
      *reinterpret_cast<float4*>(to) = {values[0], values[1], values[2], values[3]};
      *reinterpret_cast<float4*>(to + 4) = {values[4], values[5], values[6], values[7]};
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        if (i < present) to[i] = values[i];
      }
    }
  }
};

template <>
struct Eight<Bf16> {
  uint4 words;

  __device__ static Eight of(const float (&x)[kEight]) {
    return {{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
             pack_bf16(x[6], x[7])}};
  }
  __device__ float operator[](int i) const {
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    return __uint_as_float(i % 2 ? pairs[i / 2] & 0xffff0000u : pairs[i / 2] << 16);
  }
  __device__ void load(const Bf16* from, int present, bool wide, float none = 0) {
    if (wide) {
      const uint32_t two = pack_bf16(none, none);
      words = {two, two, two, two};
      if (present > 0) words = *reinterpret_cast<const uint4*>(from);
    } else {
      float x[kEight];
#pragma unroll
      for (int i = 0; i < kEight; ++i) x[i] = i < present ? to_float(from[i]) : none;
      *this = of(x);
    }
  }
  __device__ void store(Bf16* to, int present, bool wide) const {
    if (wide) {
      if (present > 0) *reinterpret_cast<uint4*>(to) = words;
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        if (i < present) to[i] = from_float<Bf16>((*this)[i]);
      }
    }
  }
};

__device__ inline void unpack_four(const float4& four, float (&to)[4]) {
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// Whether rows of these tensors move by 16 bytes. Absent ones do.
template <class... View>
bool scan_rows_wide(int64_t channels, const View&... view) {
  const auto one = [](const ConstTensorView& rows) { return !rows || aligned_rows(rows); };
  return channels % kEight == 0 && (one(view) && ...);
}

// --- A block's work, and a thread's --------------------------------------------------------------

struct ScanBlock {
  int b, map;  // map: index of the piece among those of all rows
  int tile;    // which of a piece's blocks
  int row;     // of the row's first token
  int first_span, last_span;
  int end;  // of the piece's tokens

  template <class T>
  __device__ explicit ScanBlock(const ScanInput<T>& in) {
    tile = int(blockIdx.x % in.tiles);
    map = int(blockIdx.x / in.tiles);
    b = map / int(in.pieces.count);
    first_span = int(in.pieces.begin(map % int(in.pieces.count)));
    last_span = int(in.pieces.end(map % int(in.pieces.count))) - 1;
    end = min(in.tokens, (last_span + 1) * kSpan);
    row = b * in.tokens;
  }
};

// Steps 1 and 3: a token of the span and 8 channels. A thread's cells have the same channels.
struct ScanCell {
  int token;
  int column;   // first channel within the block
  int e;        // the same among all
  int present;  // of the channels

  template <class T>
  __device__ ScanCell(const ScanInput<T>& in, const ScanBlock& block, int which) {
    const int eights = in.width / kEight;
    token = int(threadIdx.x) / eights + which * (kSpan / kCells);
    column = int(threadIdx.x) % eights * kEight;
    e = block.tile * in.width + column;
    present = min(kEight, max(0, in.channels - e));
  }
  // Channels that are there in the span that begins at token `begin`.
  __device__ int present_in(int begin, int end) const { return begin + token < end ? present : 0; }
};

// Step 2: two channels, and which of their states.
struct ScanWalker {
  int column;  // the first channel within the block
  int lane;    // of the pair's kLanes
  int first;   // the first channel among all
  int channels;
  float A[kPair][kOwn];  // times log2(e), below 0

  template <class T>
  __device__ ScanWalker(const ScanInput<T>& in, const ScanBlock& block)
      : column(int(threadIdx.x) / kLanes * kPair),
        lane(int(threadIdx.x) % kLanes),
        first(block.tile * in.width + column),
        channels(in.channels) {
#pragma unroll
    for (int c = 0; c < kPair; ++c) {
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        const int state = lane * kOwn + n;
        A[c][n] =
            state < in.states ? fminf(-kLog2E * expf(*in.A_log.at(e(c), state)), kLeastA) : -1.0f;
      }
    }
  }
  // Channel c of the two among all; the last where there is none.
  __device__ int e(int c) const { return min(first + c, channels - 1); }
  __device__ bool active(int c) const { return first + c < channels; }

  // This thread's states of both channels; place(e): those of channel e.
  template <class Place>
  __device__ void load_states(const Place& place, int states, bool wide,
                              float (&h)[kPair][kOwn]) const {
    const int first_state = lane * kOwn;
#pragma unroll
    for (int c = 0; c < kPair; ++c) {
      const float* const from = place(e(c)) + first_state;
      if (wide) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        h[c][0] = four.x, h[c][1] = four.y, h[c][2] = four.z, h[c][3] = four.w;
      } else {
#pragma unroll
        for (int n = 0; n < kOwn; ++n) h[c][n] = first_state + n < states ? from[n] : 0.0f;
      }
    }
  }
  template <class Place>
  __device__ void store_states(const Place& place, int states, bool wide,
                               const float (&h)[kPair][kOwn]) const {
    const int first_state = lane * kOwn;
#pragma unroll
    for (int c = 0; c < kPair; ++c) {
      if (!active(c)) continue;
      float* const to = place(e(c)) + first_state;
      if (wide) {
        *reinterpret_cast<float4*>(to) = {h[c][0], h[c][1], h[c][2], h[c][3]};
      } else {
#pragma unroll
        for (int n = 0; n < kOwn; ++n) {
          if (first_state + n < states) to[n] = h[c][n];
        }
      }
    }
  }
};

// values[i] of the four lanes of a pair, added up: lane i gets the sum of values[i]. `lane` is
// this thread's.
__device__ inline float sum_of_lanes(const float (&values)[kLanes], int lane) {
  const bool upper = lane & 2, odd = lane & 1;
  float first = upper ? values[2] : values[0], second = upper ? values[3] : values[1];
  first += __shfl_xor_sync(kFullWarp, upper ? values[0] : values[2], 2);
  second += __shfl_xor_sync(kFullWarp, upper ? values[1] : values[3], 2);
  return (odd ? second : first) + __shfl_xor_sync(kFullWarp, odd ? first : second, 1);
}

// --- A span in shared memory ---------------------------------------------------------------------

// 8 channels of a table, which is aligned to 16 bytes.
__device__ inline void load_eight(const float* table, float (&to)[kEight]) {
#pragma unroll
  for (int i = 0; i < kEight; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(table + i);
    to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
  }
}

// A number a token and channel. Units of 16 bytes are permuted so that threads with 8 channels each
// meet all banks; a row's padding does the same for threads with a token each.
class SpanFloats {
 public:
  // Of a walker's two channels.
  struct Column {
    float2* data;
    __device__ float2& operator[](int token) const { return data[token * 2 * kUnits]; }
  };
  __device__ Column column(int c) {
    return {reinterpret_cast<float2*>(&unit(0, c)) + c / kPair % 2};
  }
  // Of 4 of a cell's 8 channels: from `column + i` on, i = 0 or 4.
  __device__ float4& four(const ScanCell& cell, int i) {
    return units_[cell.token][cell.column / 4 + ((i / 4) ^ (cell.column / 32 & 1))];
  }
  // Of channels c .. c + 3 where 4 divides c.
  __device__ float4& unit(int token, int c) { return units_[token][(c / 4) ^ (c / 32 & 1)]; }

 private:
  static constexpr int kUnits = kMaxWidth / 4 + 1;
  float4 units_[kSpan][kUnits];
};

// Two numbers a token and channel: of two channels the first of either, then the second of either.
class SpanPairs {
 public:
  // Of a walker's two channels.
  struct Column {
    float4* data;
    __device__ float4& operator[](int token) const { return data[token * kUnits]; }
  };
  __device__ Column column(int c) { return {&two(0, c)}; }
  // Of channels c, c + 1 where c is even.
  __device__ float4& two(int token, int c) { return units_[token][(c / 2) ^ (c / 16 & 3)]; }
  // Of 2 of a cell's 8 channels: `column + i` and the next, i even.
  __device__ float4& two_of(const ScanCell& cell, int i) {
    return units_[cell.token][cell.column / 2 + ((i / 2) ^ (cell.column / 16 & 3))];
  }

 private:
  static constexpr int kUnits = kMaxWidth / 2 + 1;
  float4 units_[kSpan][kUnits];
};

// B and C of a span in f32; zero where there is no token, no state or no tensor.
template <class T>
class SpanBC {
  static constexpr int kEights = 2 * kStates / kEight;
  static constexpr int kPieces = 2;  // of a thread at most: 8 states of B or C of a token

 public:
  // What one thread brings.
  struct Fetched {
    Eight<T> states[kPieces];

    // wide: B and C move by 16 bytes.
    __device__ void load(const ScanInput<T>& in, const ScanBlock& block, int span, bool wide) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int piece = int(threadIdx.x) + i * int(blockDim.x);
        if (piece >= kSpan * kEights) return;
        const int t = span * kSpan + piece / kEights;
        const int eight = piece % kEights, first = eight % 2 * kEight;
        const ScanColumns<const T>& from = eight < 2 ? in.B : in.C;
        const int present = t < in.tokens && from ? max(0, min(kEight, in.states - first)) : 0;
        states[i].load(present > 0 ? from.at(block.row + t, first) : nullptr, present, wide);
      }
    }
  };
  __device__ void put(const Fetched& fetched) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = int(threadIdx.x) + i * int(blockDim.x);
      if (piece >= kSpan * kEights) return;
      const int eight = piece % kEights;
      float4(*const to)[2] = &units_[piece / kEights][eight % 2 * 2];
      to[0][eight / 2] = four(fetched.states[i], 0), to[1][eight / 2] = four(fetched.states[i], 4);
    }
  }
  // The states of a lane.
  __device__ void load(int token, int lane, float (&B)[kOwn], float (&C)[kOwn]) const {
    const float4(&both)[2] = units_[token][lane];
    unpack_four(both[0], B), unpack_four(both[1], C);
  }

 private:
  __device__ static float4 four(const Eight<T>& states, int i) {
    return {states[i], states[i + 1], states[i + 2], states[i + 3]};
  }
  float4 units_[kSpan][kLanes][2];  // B, C
};

// What a walker reads of a token: of its channels, and of its states.
struct WalkToken {
  float dt[kPair], dt_u[kPair];
  float B[kOwn], C[kOwn];

  template <class T>
  __device__ void load(const SpanPairs::Column& pairs, const SpanBC<T>& bc, int token, int lane) {
    const float4 two = pairs[token];
    dt[0] = two.x, dt[1] = two.y, dt_u[0] = two.z, dt_u[1] = two.w;
    bc.load(token, lane, B, C);
  }
};

// The recurrence over a span, from h before it to h behind it. after(token, c) follows every step
// of channel c, and leave(token, {left, right}) comes once a token from one of the pair's lanes,
// with the sums over n of C h of both channels.
template <class T, class After, class Leave>
__device__ void walk_span(const ScanWalker& me, const SpanPairs::Column& steps, const SpanBC<T>& bc,
                          float (&h)[kPair][kOwn], const After& after, const Leave& leave) {
  WalkToken next;
  next.load(steps, bc, 0, me.lane);
#pragma unroll 2
  for (int first = 0; first < kSpan; first += kLanes) {
    float sums[kPair][kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const WalkToken now = next;
      next.load(steps, bc, (first + i + 1) % kSpan, me.lane);
#pragma unroll
      for (int c = 0; c < kPair; ++c) {
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kOwn; ++n) {
          h[c][n] = fmaf(exp2_approx(now.dt[c] * me.A[c][n]), h[c][n], now.dt_u[c] * now.B[n]);
          sum = fmaf(now.C[n], h[c][n], sum);
        }
        sums[c][i] = sum;
        after(first + i, c);
      }
    }
    const float left = sum_of_lanes(sums[0], me.lane), right = sum_of_lanes(sums[1], me.lane);
    leave(first + me.lane, make_float2(left, right));
  }
}

__device__ inline void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
// What a cell will read of a span.
template <class T>
__device__ void prefetch_cell(const ScanInput<T>& in, const ScanBlock& block, const ScanCell& cell,
                              int span) {
  if (cell.present_in(span * kSpan, block.end) == 0) return;
  const int row = block.row + span * kSpan + cell.token;
  prefetch_to_l2(in.delta.at(row, cell.e));
  if (in.u) prefetch_to_l2(in.u.at(row, cell.e));
  if (in.z) prefetch_to_l2(in.z.at(row, cell.e));
  if (in.dy) prefetch_to_l2(in.dy.at(row, cell.e));
}

}  // namespace sluice::cuda
