// B batch, T tokens, C channels, K taps
#include "kernels/causal_conv1d/causal_conv1d_cuda.cuh"

namespace sluice::cuda {

namespace {

constexpr int64_t kForwardRows = kWarp;  // tokens of a warp: each lane looks one document start up
constexpr int kAhead = 4;                // rows on their way at once
constexpr int kPlainThreads = 256;

// Memory-bound: 4 T C bytes in bf16. A lane walks down 16 bytes of channels with the last three
// rows in registers, so x is read once but for 3 rows in 32, which neighbours have just put in L2.
template <class T>
__global__ void __launch_bounds__(kConvWarps* kWarp, 4)
    forward_kernel(ConvInput<T> in, T* y, int64_t y_stride, int64_t tiles) {
  constexpr int kWidth = Pack<T>::kWidth;
  using Row = Channels<T, kWidth>;
  const ConvPiece piece(in.B, in.tokens, in.C, kWidth, kForwardRows, tiles);
  if (piece.count <= 0) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t age_of_row = lane < piece.count ? in.age(piece.b, piece.begin + lane) : 1;
  const unsigned starts = __ballot_sync(kFullWarp, age_of_row == 0);
  ConvWindow<kWidth> window(in, piece.b, piece.begin, __shfl_sync(kFullWarp, age_of_row, 0),
                            piece.c);
  const int64_t first_row = piece.b * in.tokens + piece.begin;
  const T* const x = in.x + first_row * in.x_stride + piece.c;
  y += first_row * y_stride + piece.c;
  const int count = int(piece.count);
  for (int begin = 0; begin < count; begin += kAhead) {
    Row rows[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i < count) rows[i] = Row::load(x + (begin + i) * in.x_stride);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i >= count) break;
      if (starts >> (begin + i) & 1) window.forget();
      ConvRow<kWidth> current;
      current.set(rows[i]);
      Row out;
#pragma unroll
      for (int channel = 0; channel < kWidth; ++channel) {
        const float v = window.pre_activation(channel, current.values[channel]);
        out.values[channel] = from_float<T>(in.silu ? silu(v) : v);
      }
      if (piece.active) out.store(y + (begin + i) * y_stride);
      window.push(current);
    }
  }
}

// Any number of taps, any alignment: a thread an element.
template <class T>
__global__ void forward_plain_kernel(ConvInput<T> in, T* y, int64_t y_stride) {
  const int64_t i = blockIdx.x * int64_t(kPlainThreads) + threadIdx.x;
  if (i >= in.B * in.tokens * in.C) return;
  const int64_t row = i / in.C, c = i % in.C;
  const float v = in.pre_activation(row / in.tokens, row % in.tokens, c);
  y[row * y_stride + c] = from_float<T>(in.silu ? silu(v) : v);
}

template <class T>
struct StepTensors {
  const T* x;
  const T* weight;
  const float* bias;
  T* tail;
  T* y;
  int64_t x_stride, weight_stride, tail_stride, y_stride;
};

template <class T>
__global__ void step_kernel(StepTensors<T> tensors, int64_t B, int64_t C, int K, bool with_silu) {
  const int64_t i = blockIdx.x * int64_t(kPlainThreads) + threadIdx.x;
  if (i >= B * C) return;
  const int64_t b = i / C, c = i % C;
  const T* const weight = tensors.weight + c * tensors.weight_stride;
  T* const tail = tensors.tail + b * (K - 1) * tensors.tail_stride + c;
  const T x = tensors.x[b * tensors.x_stride + c];
  float v = tensors.bias == nullptr ? 0.0f : tensors.bias[c];
  T current = K > 1 ? tail[0] : x;
  for (int k = 0; k + 1 < K; ++k) {
    v = fmaf(to_float(weight[k]), to_float(current), v);
    current = k + 2 < K ? tail[(k + 1) * tensors.tail_stride] : x;
    tail[k * tensors.tail_stride] = current;
  }
  v = fmaf(to_float(weight[K - 1]), to_float(x), v);
  tensors.y[b * tensors.y_stride + c] = from_float<T>(with_silu ? silu(v) : v);
}

}  // namespace

void causal_conv1d_forward(const Context& ctx, const CausalConv1dForward& args) {
  if (args.x.numel() == 0) return;
  dispatch_float(args.x.dtype, [&]<class T>() {
    constexpr int kWidth = Pack<T>::kWidth;
    const ConvInput<T> in(args);
    T* const y = pointer<T>(args.y);
    if (conv_in_windows<T, kWidth>(in, args.weight, args.x, args.halo, args.y)) {
      const int64_t tiles = ceil_div(in.C, kWarp * kWidth);
      const int64_t pieces = in.B * ceil_div(in.tokens, kForwardRows);
      launch(
          ctx, "causal_conv1d_forward",
          {.blocks = unsigned(ceil_div(pieces, kConvWarps) * tiles), .threads = kConvWarps * kWarp},
          forward_kernel<T>, in, y, args.y.row_stride, tiles);
    } else {
      launch(
          ctx, "causal_conv1d_forward",
          {.blocks = unsigned(ceil_div(args.x.numel(), kPlainThreads)), .threads = kPlainThreads},
          forward_plain_kernel<T>, in, y, args.y.row_stride);
    }
  });
}

void causal_conv1d_step(const Context& ctx, const CausalConv1dStep& args) {
  const int64_t B = args.x.dim(0), C = args.x.dim(1), K = args.weight.dim(1);
  dispatch_float(args.x.dtype, [&]<class T>() {
    const StepTensors<T> tensors{.x = pointer<T>(args.x),
                                 .weight = pointer<T>(args.weight),
                                 .bias = optional_pointer<float>(args.bias),
                                 .tail = pointer<T>(args.tail),
                                 .y = pointer<T>(args.y),
                                 .x_stride = args.x.row_stride,
                                 .weight_stride = args.weight.row_stride,
                                 .tail_stride = args.tail.row_stride,
                                 .y_stride = args.y.row_stride};
    launch(ctx, "causal_conv1d_step",
           {.blocks = unsigned(ceil_div(B * C, kPlainThreads)), .threads = kPlainThreads},
           step_kernel<T>, tensors, B, C, int(K), args.silu);
  });
}

}  // namespace sluice::cuda
