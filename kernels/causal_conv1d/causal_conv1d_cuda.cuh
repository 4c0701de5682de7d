// What the convolution's kernels share: the input with what lies before it, and the taps of a
// thread's channels.
#pragma once

#include "kernels/causal_conv1d/causal_conv1d_cuda.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

// Taps of the kernels that keep a window of rows in registers. Other widths take the plain kernels.
constexpr int kConvTaps = 4;

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

// kWidth neighbouring elements, moved by one instruction.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Channels {
  T values[kWidth];

  __device__ static Channels load(const T* from) {
    return *reinterpret_cast<const Channels*>(from);
  }
  __device__ void store(T* to) const { *reinterpret_cast<Channels*>(to) = *this; }
};

// x of kWidth channels at one token.
template <int kWidth>
struct ConvRow {
  float values[kWidth];

  template <class T>
  __device__ void set(const Channels<T, kWidth>& from) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = to_float(from.values[i]);
  }
  __device__ void clear() {
#pragma unroll
    for (float& value : values) value = 0;
  }
};

// The kernels' view of kWidth channels: their taps, and the last rows of x that they have passed.
template <int kWidth>
struct ConvWindow {
  float weight[kConvTaps][kWidth];  // tap j is of the token j before
  float bias[kWidth];
  ConvRow<kWidth> before[kConvTaps - 1];  // x of the token 1, 2, 3 before; zero if not seen

  // Channels from c on, about to see token t.
  template <class T>
  __device__ ConvWindow(const ConvInput<T>& in, int64_t b, int64_t t, int64_t age, int64_t c) {
    const T* const taps = in.weight + c * kConvTaps;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const auto of_channel = Channels<T, kConvTaps>::load(taps + i * kConvTaps);
#pragma unroll
      for (int j = 0; j < kConvTaps; ++j)
        weight[j][i] = to_float(of_channel.values[kConvTaps - 1 - j]);
      bias[i] = in.bias == nullptr ? 0.0f : in.bias[c + i];
    }
#pragma unroll
    for (int j = 1; j < kConvTaps; ++j) {
      const T* const row = j <= age ? in.row(b, t - j) : nullptr;
      before[j - 1].clear();
      if (row != nullptr) before[j - 1].set(Channels<T, kWidth>::load(row + c));
    }
  }

  // Before the first token of a document.
  __device__ void forget() {
#pragma unroll
    for (ConvRow<kWidth>& row : before) row.clear();
  }
  __device__ float pre_activation(int i, float x) const {
    float v = fmaf(weight[0][i], x, bias[i]);
#pragma unroll
    for (int j = 1; j < kConvTaps; ++j) v = fmaf(weight[j][i], before[j - 1].values[i], v);
    return v;
  }
  __device__ void push(const ConvRow<kWidth>& x) {
#pragma unroll
    for (int j = kConvTaps - 2; j > 0; --j) before[j] = before[j - 1];
    before[0] = x;
  }
};

// A warp's part of the work: 32 * kWidth channels, some tokens of one row. Tiles of channels lie
// beside each other in the grid, so that neighbouring blocks read neighbouring memory.
struct ConvPiece {
  int64_t b, begin, count;  // tokens; count <= 0: none
  int64_t tile_begin;       // first channel of the block
  int64_t c;                // this lane's first channel, or the last that can be read
  bool active;              // whether this lane owns its channels

  __device__ ConvPiece(int64_t B, int64_t T, int64_t C, int width, int64_t rows, int64_t tiles) {
    const int64_t pieces = (T + rows - 1) / rows;
    const int64_t piece = blockIdx.x / tiles * kConvWarps + threadIdx.x / kWarp;
    tile_begin = blockIdx.x % tiles * kWarp * width;
    const int64_t first = tile_begin + threadIdx.x % kWarp * width;
    b = piece / pieces;
    begin = piece % pieces * rows;
    count = b < B ? min(rows, T - begin) : 0;
    active = first < C;
    c = active ? first : C - width;
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

// Whether the kernels of kConvTaps taps can take these tensors, `width` channels a thread.
template <class T, int kWidth, class... View>
bool conv_in_windows(const ConvInput<T>& in, const ConstTensorView& weight, const View&... rows) {
  return in.K == kConvTaps && in.weight_stride == kConvTaps && in.C % kWidth == 0 &&
         conv_aligned<kConvTaps * sizeof(T)>(weight) && conv_aligned<kWidth * sizeof(T)>(rows...);
}

}  // namespace sluice::cuda
