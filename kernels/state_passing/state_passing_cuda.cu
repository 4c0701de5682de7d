// B batch, M chunks of a row, H heads, P head dim, N state dim; size = P * N
//
// Floor: bytes. Forward 2 and backward 3 transfers of B M H size floats: at T = 16384, H = 64,
// P = 64, N = 128 and chunks of 256 tokens 0.27 and 0.40 GB, 0.09 and 0.13 ms; twice that with
// chunks of 128. A thread owns 4 (else 1) neighbouring elements of a head's state and walks the
// chunks with the state in registers, kAhead chunks' loads in flight: a row of the batch has only
// H * size / 4 threads, so the loads must not wait for the chain.
#include "kernels/state_passing/state_passing_cuda.h"

#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = kStatePassingThreads;
constexpr int kAhead = 4;

template <int kWidth>
struct alignas(4 * kWidth) Elements {
  struct alignas(2 * kWidth) Narrow {
    Bf16 values[kWidth];
  };
  float values[kWidth];

  __device__ static Elements load(const float* from) {
    return *reinterpret_cast<const Elements*>(from);
  }
  __device__ static Elements load(const Bf16* from) {
    const Narrow narrow = *reinterpret_cast<const Narrow*>(from);
    Elements wide;
#pragma unroll
    for (int v = 0; v < kWidth; ++v) wide.values[v] = to_float(narrow.values[v]);
    return wide;
  }
  __device__ void store(float* to) const { *reinterpret_cast<Elements*>(to) = *this; }
  __device__ void store(Bf16* to) const {
    Narrow narrow;
#pragma unroll
    for (int v = 0; v < kWidth; ++v) narrow.values[v] = from_float<Bf16>(values[v]);
    *reinterpret_cast<Narrow*>(to) = narrow;
  }
};

// One head of one row of the batch a blockIdx.y.
struct Shape {
  int64_t M, H, size;
};

// Where one thread's elements lie. Null pointers: not given.
template <class Out>
struct ForwardArrays {
  const float *state, *decay, *initial;
  Out* incoming;
  float *final_state, *total_decay;
  int64_t state_stride, decay_stride, initial_stride;
  int64_t incoming_stride, final_stride, total_stride;
};

template <int kWidth, class Out>
__global__ void __launch_bounds__(kThreads) forward_kernel(Shape shape, ForwardArrays<Out> in) {
  using Element = Elements<kWidth>;
  const int64_t i = (blockIdx.y * int64_t(kThreads) + threadIdx.x) * kWidth;
  const int64_t index = blockIdx.x, b = index / shape.H, h = index % shape.H;
  if (i >= shape.size) return;
  const float* const state = in.state + b * shape.M * in.state_stride + h * shape.size + i;
  const float* const decays = in.decay + b * shape.M * in.decay_stride + h;
  Out* const incoming = in.incoming == nullptr
                            ? nullptr
                            : in.incoming + b * shape.M * in.incoming_stride + h * shape.size + i;
  Element carry{};
  if (in.initial != nullptr) carry = Element::load(in.initial + index * in.initial_stride + i);
  float total = 1;
  for (int64_t m0 = 0; m0 < shape.M; m0 += kAhead) {
    Element own[kAhead];
    float decay[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (m0 + a >= shape.M) continue;
      own[a] = Element::load(state + (m0 + a) * in.state_stride);
      decay[a] = decays[(m0 + a) * in.decay_stride];
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (m0 + a >= shape.M) continue;
      if (incoming != nullptr) carry.store(incoming + (m0 + a) * in.incoming_stride);
#pragma unroll
      for (int v = 0; v < kWidth; ++v)
        carry.values[v] = decay[a] * carry.values[v] + own[a].values[v];
      total *= decay[a];
    }
  }
  if (in.final_state != nullptr) carry.store(in.final_state + index * in.final_stride + i);
  if (in.total_decay != nullptr && i == 0) in.total_decay[b * in.total_stride + h] = total;
}

template <class In, class Out>
struct BackwardArrays {
  const float* dincoming;
  const In* incoming;
  const float *decay, *dfinal;
  Out* doutgoing;
  float* dinitial;
  float* partial;  // (B * M * H, warps of a head)
  int64_t dincoming_stride, incoming_stride, decay_stride, dfinal_stride;
  int64_t doutgoing_stride, dinitial_stride;
};

// Each warp's share of <doutgoing, incoming> goes to memory: 1 MB where the states are 134 MB.
template <int kWidth, class In, class Out>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Shape shape, BackwardArrays<In, Out> in) {
  using Element = Elements<kWidth>;
  const int64_t i = (blockIdx.y * int64_t(kThreads) + threadIdx.x) * kWidth;
  const int64_t index = blockIdx.x, b = index / shape.H, h = index % shape.H;
  const bool inside = i < shape.size;  // all of a warp must meet in the sums
  const int64_t offset = h * shape.size + i;
  const float* const decays = in.decay + b * shape.M * in.decay_stride + h;
  const int64_t warps = gridDim.y * (kThreads / kWarp);
  const int64_t warp = blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp;
  Element carry{};
  if (in.dfinal != nullptr && inside)
    carry = Element::load(in.dfinal + index * in.dfinal_stride + i);
  for (int64_t m0 = shape.M - 1; m0 >= 0; m0 -= kAhead) {
    Element own[kAhead], before[kAhead];
    float decay[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      own[a] = before[a] = Element{};
      if (m0 - a < 0) continue;
      const int64_t chunk = b * shape.M + m0 - a;
      decay[a] = decays[(m0 - a) * in.decay_stride];
      if (!inside) continue;
      own[a] = Element::load(in.dincoming + chunk * in.dincoming_stride + offset);
      if (in.incoming != nullptr)
        before[a] = Element::load(in.incoming + chunk * in.incoming_stride + offset);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (m0 - a < 0) continue;
      const int64_t chunk = b * shape.M + m0 - a;
      if (in.doutgoing != nullptr && inside)
        carry.store(in.doutgoing + chunk * in.doutgoing_stride + offset);
      if (in.partial != nullptr) {
        float dot = 0;
#pragma unroll
        for (int v = 0; v < kWidth; ++v) dot += carry.values[v] * before[a].values[v];
        dot = warp_sum(dot);
        if (threadIdx.x % kWarp == 0) in.partial[(chunk * shape.H + h) * warps + warp] = dot;
      }
#pragma unroll
      for (int v = 0; v < kWidth; ++v)
        carry.values[v] = own[a].values[v] + decay[a] * carry.values[v];
    }
  }
  if (in.dinitial != nullptr && inside) carry.store(in.dinitial + index * in.dinitial_stride + i);
}

// A warp adds up the shares of one chunk and head.
__global__ void __launch_bounds__(kThreads)
    log_decay_kernel(const float* partial, int64_t warps, const float* decay, int64_t decay_stride,
                     float* dlog_decay, int64_t dlog_decay_stride, int64_t H, int64_t count) {
  const int64_t index = blockIdx.x * int64_t(kThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= count) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < warps; i += kWarp) sum += partial[index * warps + i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp != 0) return;
  const int64_t chunk = index / H, h = index % H;
  dlog_decay[chunk * dlog_decay_stride + h] = decay[chunk * decay_stride + h] * sum;
}

// Whether rows of these tensors can be read and written four elements at a time.
template <class... Views>
bool wide(int64_t size, const Views&... views) {
  const auto fits = [](const auto& view) {
    return reinterpret_cast<uintptr_t>(view.data) % (4 * size_of(view.dtype)) == 0 &&
           view.row_stride % 4 == 0;
  };
  return size % 4 == 0 && (fits(views) && ...);
}

Grid grid_of(int64_t heads, int64_t size, int width) {
  return {.blocks = {unsigned(heads), unsigned(ceil_div(size, kThreads * width))},
          .threads = kThreads};
}

// Of states that may be absent.
DType operand_dtype(const ConstTensorView& view) { return view ? view.dtype : DType::f32; }

}  // namespace

void state_passing_forward(const Context& ctx, const StatePassingForward& args) {
  const Shape shape{args.state.dim(1), args.state.dim(2), args.state.dim(3) * args.state.dim(4)};
  const bool is_wide = wide(shape.size, args.state, args.initial, args.incoming, args.final_state);
  const Grid grid = grid_of(args.state.dim(0) * shape.H, shape.size, is_wide ? 4 : 1);
  dispatch_float(operand_dtype(args.incoming), [&]<class Out>() {
    const ForwardArrays<Out> in{.state = args.state.as<float>(),
                                .decay = args.decay.as<float>(),
                                .initial = optional_pointer<float>(args.initial),
                                .incoming = optional_pointer<Out>(args.incoming),
                                .final_state = optional_pointer<float>(args.final_state),
                                .total_decay = optional_pointer<float>(args.total_decay),
                                .state_stride = args.state.row_stride,
                                .decay_stride = args.decay.row_stride,
                                .initial_stride = args.initial.row_stride,
                                .incoming_stride = args.incoming.row_stride,
                                .final_stride = args.final_state.row_stride,
                                .total_stride = args.total_decay.row_stride};
    launch(ctx, "state_passing_forward", grid,
           is_wide ? forward_kernel<4, Out> : forward_kernel<1, Out>, shape, in);
  });
}

void state_passing_backward(const Context& ctx, const StatePassingBackward& args,
                            TensorView partial) {
  const int64_t B = args.dincoming.dim(0);
  const Shape shape{args.dincoming.dim(1), args.dincoming.dim(2),
                    args.dincoming.dim(3) * args.dincoming.dim(4)};
  const bool is_wide =
      wide(shape.size, args.dincoming, args.incoming, args.dfinal, args.doutgoing, args.dinitial);
  const Grid grid = grid_of(B * shape.H, shape.size, is_wide ? 4 : 1);
  const float* const decay = args.decay.as<float>();
  float* const sums = optional_pointer<float>(partial);
  const auto run = [&]<class In, class Out>() {
    const BackwardArrays<In, Out> in{.dincoming = args.dincoming.as<float>(),
                                     .incoming = optional_pointer<In>(args.incoming),
                                     .decay = decay,
                                     .dfinal = optional_pointer<float>(args.dfinal),
                                     .doutgoing = optional_pointer<Out>(args.doutgoing),
                                     .dinitial = optional_pointer<float>(args.dinitial),
                                     .partial = sums,
                                     .dincoming_stride = args.dincoming.row_stride,
                                     .incoming_stride = args.incoming.row_stride,
                                     .decay_stride = args.decay.row_stride,
                                     .dfinal_stride = args.dfinal.row_stride,
                                     .doutgoing_stride = args.doutgoing.row_stride,
                                     .dinitial_stride = args.dinitial.row_stride};
    launch(ctx, "state_passing_backward", grid,
           is_wide ? backward_kernel<4, In, Out> : backward_kernel<1, In, Out>, shape, in);
  };
  dispatch_float(operand_dtype(args.incoming), [&]<class In>() {
    dispatch_float(operand_dtype(args.doutgoing),
                   [&]<class Out>() { run.template operator()<In, Out>(); });
  });
  if (!args.dlog_decay) return;
  constexpr int kWarps = kThreads / kWarp;
  const int64_t count = B * shape.M * shape.H;
  launch(ctx, "state_passing_backward",
         {.blocks = unsigned(ceil_div(count, kWarps)), .threads = kThreads}, log_decay_kernel, sums,
         int64_t(grid.blocks.y) * kWarps, decay, args.decay.row_stride, args.dlog_decay.as<float>(),
         args.dlog_decay.row_stride, shape.H, count);
}

}  // namespace sluice::cuda
