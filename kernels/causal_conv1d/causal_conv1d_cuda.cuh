// What the convolution's kernels share: the input with what lies before it, and the taps of a
// thread's channels.
#pragma once

#include "kernels/causal_conv1d/causal_conv1d_cuda.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

template <class T>
struct ConvInput {
  const T* x;
  const T* halo;  // null: zeros
  const T* weight;
  const float* bias;  // null: zeros
  const int32_t* doc_begin;
  int64_t x_stride, halo_stride, weight_stride, doc_stride;
  int64_t B, tokens, C;
  int K;
  bool silu;

  template <class Args>
  explicit ConvInput(const Args& args)
      : x(pointer<T>(args.x)),
        halo(optional_pointer<T>(args.halo)),
        weight(pointer<T>(args.weight)),
        bias(optional_pointer<float>(args.bias)),
        doc_begin(pointer<int32_t>(args.doc_begin)),
        x_stride(args.x.row_stride),
        halo_stride(args.halo.row_stride),
        weight_stride(args.weight.row_stride),
        doc_stride(args.doc_begin.row_stride),
        B(args.x.dim(0)),
        tokens(args.x.dim(1)),
        C(args.x.dim(2)),
        K(int(args.weight.dim(1))),
        silu(args.silu) {}

  // Tokens between token t and the first of its document.
  __device__ int64_t age(int64_t b, int64_t t) const { return t - doc_begin[b * doc_stride + t]; }
  // The row of token `position`, in the halo where it is negative; null if nobody has it.
  __device__ const T* row(int64_t b, int64_t position) const {
    if (position >= 0) return x + (b * tokens + position) * x_stride;
    if (halo == nullptr || position + K - 1 < 0) return nullptr;
    return halo + (b * (K - 1) + K - 1 + position) * halo_stride;
  }
  // x of the token j before t, zero where t does not see it.
  __device__ float tap(int64_t b, int64_t t, int64_t age, int j, int64_t c) const {
    const T* const from = j <= age ? row(b, t - j) : nullptr;
    return from == nullptr ? 0.0f : to_float(from[c]);
  }
  // v of the header.
  __device__ float pre_activation(int64_t b, int64_t t, int64_t c) const {
    const int64_t age = this->age(b, t);
    float v = bias == nullptr ? 0.0f : bias[c];
    for (int j = 0; j < K; ++j) {
      v = fmaf(to_float(weight[c * weight_stride + K - 1 - j]), tap(b, t, age, j, c), v);
    }
    return v;
  }
};

// Neighbouring channels of a lane, moved by one instruction: 8 bytes of bf16 or 16 of f32.
static_assert(kConvWidth == kConvChannels / kWarp);

struct ConvRow {
  float values[kConvWidth] = {};
};
template <class T>
struct alignas(sizeof(T) * kConvWidth) PackedConvRow {
  T values[kConvWidth];

  __device__ static PackedConvRow load(const T* from) {
    return *reinterpret_cast<const PackedConvRow*>(from);
  }
  __device__ ConvRow unpack() const {
    ConvRow row;
#pragma unroll
    for (int i = 0; i < kConvWidth; ++i) row.values[i] = to_float(values[i]);
    return row;
  }
};
__device__ inline void store_row(float* to, const ConvRow& row) {
  *reinterpret_cast<float4*>(to) = {row.values[0], row.values[1], row.values[2], row.values[3]};
}
__device__ inline void store_row(Bf16* to, const ConvRow& row) {
  *reinterpret_cast<uint2*>(to) = {pack_bf16(row.values[0], row.values[1]),
                                   pack_bf16(row.values[2], row.values[3])};
}

// A lane's next rows of kTensors tensors, on their way to shared memory: kConvStages groups of
// kConvAhead rows, of which one is being worked on. No lane reads what another one has copied;
// registers would not hold as many rows.
constexpr int kConvStages = 3;

// One lane's channels of a row, both sides aligned to as many bytes; zeros if not `valid`.
template <class T>
__device__ void copy_row_async(PackedConvRow<T>* shared, const T* global, bool valid) {
  constexpr int kBytes = sizeof(PackedConvRow<T>);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)),
               "l"(global), "n"(kBytes), "r"(valid ? kBytes : 0)
               : "memory");
}

template <class T, int kTensors>
class ConvQueue {
 public:
  // Of one warp.
  struct Shared {
    PackedConvRow<T> rows[kConvStages][kTensors][kConvAhead][kWarp];
  };
  struct Source {
    const T* rows;  // the first row, at the lane's first channel
    int64_t stride;
  };

  // `present` rows are there; zeros follow.
  __device__ ConvQueue(Shared& shared, const Source (&sources)[kTensors], int present)
      : own_(shared.rows[0][0][0] + threadIdx.x % kWarp), present_(present) {
#pragma unroll
    for (int i = 0; i < kTensors; ++i) sources_[i] = sources[i];
#pragma unroll
    for (int stage = 0; stage < kConvStages - 1; ++stage) copy();
  }
  // The next group has arrived, and the place of the one before takes a later one.
  __device__ void next() {
    wait_copies<kConvStages - 2>();
    copy();
    reading_ = reading_ + 1 < kConvStages ? reading_ + 1 : 0;
  }
  __device__ ConvRow row(int tensor, int i) const { return place(reading_, tensor, i)->unpack(); }

 private:
  __device__ PackedConvRow<T>* place(int stage, int tensor, int i) const {
    return own_ + ((stage * kTensors + tensor) * kConvAhead + i) * kWarp;
  }
  __device__ void copy() {
#pragma unroll
    for (int tensor = 0; tensor < kTensors; ++tensor) {
      Source& source = sources_[tensor];
#pragma unroll
      for (int i = 0; i < kConvAhead; ++i) {
        const bool valid = i < present_;
        const T* const from = source.rows + (valid ? i : 0) * source.stride;
        copy_row_async(place(writing_, tensor, i), from, valid);
      }
      if (present_ > kConvAhead) source.rows += kConvAhead * source.stride;
    }
    commit_copies();
    present_ -= kConvAhead;
    writing_ = writing_ + 1 < kConvStages ? writing_ + 1 : 0;
  }

  PackedConvRow<T>* own_;
  Source sources_[kTensors];
  int present_;
  int reading_ = kConvStages - 1, writing_ = 0;
};

// A lane's channels: their taps, and the last rows of x that it has passed.
struct ConvWindow {
  float weight[kConvTaps][kConvWidth];  // tap j is of the token j before
  float bias[kConvWidth];
  ConvRow before[kConvTaps - 1];  // x of the token 1, 2, 3 before; zero if not seen

  // Channels from c on, about to see token t.
  template <class T>
  __device__ ConvWindow(const ConvInput<T>& in, int64_t b, int64_t t, int64_t c) {
    const int64_t age = in.age(b, t);
#pragma unroll
    for (int i = 0; i < kConvWidth; ++i) {
      const auto taps = PackedConvRow<T>::load(in.weight + (c + i) * kConvTaps).unpack();
#pragma unroll
      for (int j = 0; j < kConvTaps; ++j) weight[j][i] = taps.values[kConvTaps - 1 - j];
      bias[i] = in.bias == nullptr ? 0.0f : in.bias[c + i];
    }
#pragma unroll
    for (int j = 1; j < kConvTaps; ++j) {
      const T* const row = j <= age ? in.row(b, t - j) : nullptr;
      if (row != nullptr) before[j - 1] = PackedConvRow<T>::load(row + c).unpack();
    }
  }

  // Before the first token of a document.
  __device__ void forget() {
#pragma unroll
    for (ConvRow& row : before) row = {};
  }
  __device__ float pre_activation(int i, float x) const {
    float v = fmaf(weight[0][i], x, bias[i]);
#pragma unroll
    for (int j = 1; j < kConvTaps; ++j) v = fmaf(weight[j][i], before[j - 1].values[i], v);
    return v;
  }
  __device__ void push(const ConvRow& x) {
#pragma unroll
    for (int j = kConvTaps - 2; j > 0; --j) before[j] = before[j - 1];
    before[0] = x;
  }
};
static_assert(kConvTaps == kConvWidth, "taps are loaded as a row");

// A warp's part of the work: a tile of kConvChannels channels, a piece of one row's tokens. Tiles
// lie beside each other in the grid, so that neighbours read neighbouring memory.
struct ConvPiece {
  int64_t b, begin;    // the row, the first token
  int count;           // of the tokens; 0: none
  int64_t tile_begin;  // first channel of the block
  int64_t c;           // this lane's first channel, or the last that can be read
  bool active;         // whether this lane owns its channels

  // `piece` counts the pieces of all rows.
  __device__ ConvPiece(int64_t B, int64_t T, int64_t C, int64_t rows, int64_t piece, int64_t tile) {
    const int64_t pieces = (T + rows - 1) / rows;
    tile_begin = tile * kConvChannels;
    const int64_t first = tile_begin + threadIdx.x % kWarp * kConvWidth;
    b = piece / pieces;
    begin = piece % pieces * rows;
    count = b < B ? int(min(rows, T - begin)) : 0;
    active = first < C;
    c = active ? first : C - kConvWidth;
  }
};

// Ages of a warp's next 32 tokens, lane by lane: tokens since the document's first, up to
// kConvTaps.
struct ConvAges {
  int age = kConvTaps;
  unsigned young = 0;  // bit i: token i does not see kConvTaps - 1 tokens before it

  // Tokens from t on; those from `end` on count as old.
  template <class T>
  __device__ void load(const ConvInput<T>& in, int64_t b, int64_t t, int64_t end) {
    t += threadIdx.x % kWarp;
    age = t < end ? int(min(in.age(b, t), int64_t{kConvTaps})) : kConvTaps;
    young = __ballot_sync(kFullWarp, age < kConvTaps - 1);
  }
  __device__ int of(int row) const { return __shfl_sync(kFullWarp, age, row % kWarp); }
  // Whether all of kRows tokens see all their taps.
  template <int kRows>
  __device__ bool old(int row) const {
    return (young >> (row % kWarp) & ((1u << kRows) - 1)) == 0;
  }
};

// Whether rows of these tensors can be moved by kBytes at once. Absent ones can.
template <int kBytes, class... View>
bool conv_aligned(const View&... view) {
  const auto one = [](const ConstTensorView& rows) {
    return !rows || (reinterpret_cast<uintptr_t>(rows.data) % kBytes == 0 &&
                     rows.row_stride * size_of(rows.dtype) % kBytes == 0);
  };
  return (one(view) && ...);
}

// Whether the kernels that keep a window of rows in registers can take these tensors.
template <class T, class... View>
bool conv_in_windows(const ConvInput<T>& in, const ConstTensorView& weight, const View&... rows) {
  constexpr int kBytes = kConvWidth * sizeof(T);
  return conv_holds(in.C, in.K) && in.silu && in.weight_stride == kConvTaps &&
         conv_aligned<kBytes>(weight, rows...);
}

}  // namespace sluice::cuda
