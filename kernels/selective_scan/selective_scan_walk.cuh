// How the forward and the backward take a span of tokens: a block has neighbouring channels of a
// piece of a row, and four threads a channel.
//
//   1. A thread takes 8 channels of one token, 16 bytes of every tensor in bf16, and leaves in
//      shared memory what the recurrence needs of them.
//   2. The four threads of a channel walk over the tokens with 4 of its 16 states each in
//   registers.
//      Sums over states go back to shared memory.
//   3. The threads of 1 finish their 8 channels.
//
// So a token's logarithms and gates are computed once a channel and its rows move by 16 bytes,
// while the walk, which waits on what it has just computed, has four times the threads.
#pragma once

#include "kernels/device/mma.cuh"
#include "kernels/selective_scan/selective_scan_cuda.cuh"

namespace sluice::cuda {

constexpr int kLanes = 4;                      // threads of a channel
constexpr int kOwn = kStates / kLanes;         // states of a thread
constexpr int kWarpChannels = kWarp / kLanes;  // channels of a warp
constexpr int kEight = 8;                      // channels of a thread in steps 1 and 3
constexpr int kMaxWidth = 64;                  // channels of a block
constexpr int kMaxScanThreads = kLanes * kMaxWidth;
static_assert(kOwn == 4 && kLanes * kEight == kSpan, "a thread has one cell of a span");

// dt as decays see it where a document starts, and the A nearest to 0: their product makes every
// decay 0, and 0 times either is 0.
constexpr float kStartDt = FLT_MAX;
constexpr float kLeastA = -1e-30f;

// --- 8 neighbouring channels of a token
// -----------------------------------------------------------

// `load` takes the first `present` from `from` on, and `none` for the others. Wide: all are there
// or none, and they are aligned to 16 bytes.
template <class T>
struct Eight;

template <>
struct Eight<float> {
  using Four = float4;
  float values[kEight];

  __device__ Four four(int i) const {
    return {values[i], values[i + 1], values[i + 2], values[i + 3]};
  }

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
  using Four = uint2;
  uint4 words;

  __device__ Four four(int i) const {
    return i == 0 ? Four{words.x, words.y} : Four{words.z, words.w};
  }

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
__device__ inline void unpack_four(const uint2& four, float (&to)[4]) {
  const float2 low = unpack_bf16(four.x), high = unpack_bf16(four.y);
  to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
}

// Whether rows of these tensors move by 16 bytes. Absent ones do.
template <class... View>
bool scan_rows_wide(int64_t channels, const View&... view) {
  const auto one = [](const ConstTensorView& rows) {
    return !rows || (reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
                     rows.row_stride * size_of(rows.dtype) % 16 == 0);
  };
  return channels % kEight == 0 && (one(view) && ...);
}

// --- A block's work, and a thread's
// ---------------------------------------------------------------

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

// Steps 1 and 3: a token of the span and 8 channels.
struct ScanCell {
  int token;
  int column;   // first channel within the block
  int e;        // the same among all
  int present;  // of the channels

  template <class T>
  __device__ ScanCell(const ScanInput<T>& in, const ScanBlock& block) {
    const int eights = in.width / kEight;
    token = int(threadIdx.x) / eights;
    column = int(threadIdx.x) % eights * kEight;
    e = block.tile * in.width + column;
    present = min(kEight, max(0, in.channels - e));
  }
  // Channels that are there in the span that begins at token `begin`.
  __device__ int present_in(int begin, int end) const { return begin + token < end ? present : 0; }
};

// Step 2: a channel, and which of its states.
struct ScanWalker {
  int column;  // the channel within the block
  int e;       // among all; the last where there is none for this thread
  int lane;    // of the channel's kLanes
  bool active;
  float A[kOwn];  // times log2(e), below 0

  template <class T>
  __device__ ScanWalker(const ScanInput<T>& in, const ScanBlock& block) {
    column = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
    e = block.tile * in.width + column;
    active = e < in.channels;
    e = min(e, in.channels - 1);
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int state = lane * kOwn + n;
      A[n] = state < in.states ? fminf(-kLog2E * expf(*in.A_log.at(e, state)), kLeastA) : -1.0f;
    }
  }

  // This thread's states in a row of them.
  __device__ void load_states(const float* row, int states, bool wide, float (&h)[kOwn]) const {
    const int first = lane * kOwn;
    if (wide) {
      const float4 four = *reinterpret_cast<const float4*>(row + first);
      h[0] = four.x, h[1] = four.y, h[2] = four.z, h[3] = four.w;
    } else {
#pragma unroll
      for (int n = 0; n < kOwn; ++n) h[n] = first + n < states ? row[first + n] : 0.0f;
    }
  }
  __device__ void store_states(float* row, int states, bool wide, const float (&h)[kOwn]) const {
    if (!active) return;
    const int first = lane * kOwn;
    if (wide) {
      *reinterpret_cast<float4*>(row + first) = {h[0], h[1], h[2], h[3]};
    } else {
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        if (first + n < states) row[first + n] = h[n];
      }
    }
  }
};

// values[i] of the four lanes of a channel, added up: lane i gets the sum of values[i]. `lane` is
// this thread's.
__device__ inline float sum_of_lanes(const float (&values)[kLanes], int lane) {
  const bool upper = lane & 2, odd = lane & 1;
  float first = upper ? values[2] : values[0], second = upper ? values[3] : values[1];
  first += __shfl_xor_sync(kFullWarp, upper ? values[0] : values[2], 2);
  second += __shfl_xor_sync(kFullWarp, upper ? values[1] : values[3], 2);
  return (odd ? second : first) + __shfl_xor_sync(kFullWarp, odd ? first : second, 1);
}

// --- A span in shared memory
// ----------------------------------------------------------------------

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
  // Of one channel.
  struct Column {
    float* data;
    __device__ float& operator[](int token) const { return data[token * 4 * kUnits]; }
  };
  __device__ Column column(int c) { return {reinterpret_cast<float*>(&unit(0, c)) + c % 4}; }
  // Of 4 of a cell's 8 channels: from `column + i` on, i = 0 or 4.
  __device__ float4& four(const ScanCell& cell, int i) {
    return units_[cell.token][cell.column / 4 + ((i / 4) ^ (cell.column / 32 & 1))];
  }
  // Of channels c, c + 1; c is even.
  __device__ float2& two(int token, int c) {
    return reinterpret_cast<float2*>(&unit(token, c))[c / 2 % 2];
  }

 private:
  static constexpr int kUnits = kMaxWidth / 4 + 1;
  __device__ float4& unit(int token, int c) { return units_[token][(c / 4) ^ (c / 32 & 1)]; }
  float4 units_[kSpan][kUnits];
};

// Two numbers a token and channel.
class SpanPairs {
 public:
  struct Column {
    float2* data;
    __device__ float2& operator[](int token) const { return data[token * 2 * kUnits]; }
  };
  __device__ Column column(int c) { return {reinterpret_cast<float2*>(&two(0, c)) + c % 2}; }
  // Of channels c, c + 1; c is even.
  __device__ float4& two(int token, int c) { return units_[token][(c / 2) ^ (c / 16 & 3)]; }
  // Of 2 of a cell's 8 channels: `column + i` and the next, i even.
  __device__ float4& two_of(const ScanCell& cell, int i) {
    return units_[cell.token][cell.column / 2 + ((i / 2) ^ (cell.column / 16 & 3))];
  }

 private:
  static constexpr int kUnits = kMaxWidth / 2 + 1;
  float4 units_[kSpan][kUnits];
};

// B and C of a span, as they come; zero where there is no token, no state or no tensor. A read
// costs as many bytes as it has threads, though most of them want the same: so not in f32.
template <class T>
class SpanBC {
 public:
  // What one thread brings.
  struct Fetched {
    Eight<T> states;

    // wide: B and C move by 16 bytes.
    __device__ void load(const ScanInput<T>& in, const ScanBlock& block, int span, bool wide) {
      if (threadIdx.x >= kThreads) return;
      const int t = span * kSpan + int(threadIdx.x) / kEights;
      const int eight = int(threadIdx.x) % kEights, first = eight % 2 * kEight;
      const ScanColumns<const T>& from = eight < 2 ? in.B : in.C;
      const int present = t < in.tokens && from ? max(0, min(kEight, in.states - first)) : 0;
      states.load(present > 0 ? from.at(block.row + t, first) : nullptr, present, wide);
    }
  };
  __device__ void put(const Fetched& fetched) {
    if (threadIdx.x >= kThreads) return;
    const int eight = int(threadIdx.x) % kEights;
    Four(*const to)[2] = &units_[threadIdx.x / kEights][eight % 2 * 2];
    to[0][eight / 2] = fetched.states.four(0), to[1][eight / 2] = fetched.states.four(4);
  }
  // The states of a lane.
  __device__ void load(int token, int lane, float (&B)[kOwn], float (&C)[kOwn]) const {
    struct alignas(2 * sizeof(Four)) Both {
      Four of[2];
    };
    const Both both = reinterpret_cast<const Both&>(units_[token][lane]);
    unpack_four(both.of[0], B), unpack_four(both.of[1], C);
  }

 private:
  using Four = typename Eight<T>::Four;
  static constexpr int kEights = 2 * kStates / kEight;
  static constexpr int kThreads = kSpan * kEights;  // no block has fewer
  alignas(32) Four units_[kSpan][kLanes][2];        // B, C
};

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
