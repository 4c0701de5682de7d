// B batch, T tokens, C channels, K taps
#include "kernels/causal_conv1d/causal_conv1d_cuda.cuh"

namespace sluice::cuda {

namespace {

constexpr int kResident = 6;  // blocks of a processor
constexpr int kPlainThreads = 256;

// A group of rows; `last` of them are there. Edge: some may not be, or may start documents.
template <bool kEdge, class T>
__device__ void forward_rows(ConvWindow& window, const ConvQueue<T, 1>& x, const ConvAges& ages,
                             int first, int last, bool active, T* y, int64_t y_stride) {
#pragma unroll
  for (int i = 0; i < kConvAhead; ++i) {
    if (kEdge && i >= last) break;
    if (kEdge && ages.of(first + i) == 0) window.forget();
    const ConvRow row = x.row(0, i);
    ConvRow out;
#pragma unroll
    for (int c = 0; c < kConvWidth; ++c)
      out.values[c] = silu(window.pre_activation(c, row.values[c]));
    if (active) store_row(y + i * y_stride, out);
    window.push(row);
  }
}

// Memory-bound: 4 T C bytes in bf16. A lane walks down its channels with the last three rows in
// registers, so x is read once but for 3 rows a warp, which a neighbour has just put in L2. What
// is on its way lies in shared memory: 16 rows a warp, which registers could not hold.
template <class T>
__global__ void __launch_bounds__(kConvWarps* kWarp, kResident)
    forward_kernel(ConvInput<T> in, T* y, int64_t y_stride) {
  __shared__ typename ConvQueue<T, 1>::Shared queues[kConvWarps];
  const int64_t tiles = conv_tiles(in.C);
  const int warp = threadIdx.x / kWarp;
  const ConvPiece piece(in.B, in.tokens, in.C, kConvForwardRows,
                        blockIdx.x / tiles * kConvWarps + warp, blockIdx.x % tiles);
  if (piece.count == 0) return;
  const int64_t first_row = piece.b * in.tokens + piece.begin;
  ConvQueue<T, 1> x(queues[warp], {{in.x + first_row * in.x_stride + piece.c, in.x_stride}},
                    piece.count);
  y += first_row * y_stride + piece.c;
  ConvWindow window(in, piece.b, piece.begin, piece.c);
  ConvAges ages;
  for (int begin = 0; begin < piece.count; begin += kConvAhead) {
    if (begin % kWarp == 0) ages.load(in, piece.b, piece.begin + begin, piece.begin + piece.count);
    x.next();
    const int left = piece.count - begin;
    if (left >= kConvAhead && ages.old<kConvAhead>(begin)) {
      forward_rows<false>(window, x, ages, begin, left, piece.active, y, y_stride);
    } else {
      forward_rows<true>(window, x, ages, begin, left, piece.active, y, y_stride);
    }
    y += kConvAhead * y_stride;
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
    const ConvInput<T> in(args);
    T* const y = pointer<T>(args.y);
    if (conv_in_windows(in, args.weight, args.x, args.halo, args.y)) {
      const int64_t pieces = in.B * ceil_div(in.tokens, kConvForwardRows);
      launch(ctx, "causal_conv1d_forward",
             {.blocks = unsigned(ceil_div(pieces, kConvWarps) * conv_tiles(in.C)),
              .threads = kConvWarps * kWarp},
             forward_kernel<T>, in, y, args.y.row_stride);
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
