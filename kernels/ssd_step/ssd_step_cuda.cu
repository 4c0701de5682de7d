// B batch, H heads, P head dim, G groups, N state dim
//
// Floor: bytes, 8 B H P N of them for the state, read and written once. A warp takes one row of a
// head's state, N numbers side by side, so that even a batch of one has H * P warps.
#include "kernels/ssd_step/ssd_step_cuda.h"

#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
struct Arrays {
  const T *x, *dt_raw, *B, *C;
  const float *dt_bias, *A_log, *D;
  float* state;
  T* y;
  int64_t x_stride, dt_raw_stride, B_stride, C_stride, state_stride, y_stride;
  int64_t H, P, G, N;
  float dt_min, dt_max;
};

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(Arrays<T> in) {
  const int64_t row = blockIdx.x, b = row / in.H, h = row % in.H;
  const int64_t p = blockIdx.y * int64_t(kThreads / kWarp) + threadIdx.x / kWarp;
  if (p >= in.P) return;
  const int64_t group = b * in.G + h * in.G / in.H;
  const T* const B = in.B + group * in.B_stride;
  const T* const C = in.C + group * in.C_stride;
  float* const state = in.state + row * in.state_stride + p * in.N;
  const float soft = softplus(to_float(in.dt_raw[b * in.dt_raw_stride + h]) + in.dt_bias[h]);
  const float dt = fminf(fmaxf(soft, in.dt_min), in.dt_max);
  const float decay = expf(-dt * expf(in.A_log[h]));
  const float x = to_float(in.x[row * in.x_stride + p]);
  float sum = 0;
#pragma unroll 4
  for (int64_t n = threadIdx.x % kWarp; n < in.N; n += kWarp) {
    const float after = decay * state[n] + dt * x * to_float(B[n]);
    state[n] = after;
    sum += after * to_float(C[n]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) in.y[row * in.y_stride + p] = from_float<T>(sum + in.D[h] * x);
}

}  // namespace

void ssd_step(const Context& ctx, const SsdStep& args) {
  const int64_t batch = args.x.dim(0), H = args.x.dim(1), P = args.x.dim(2);
  const unsigned tiles = unsigned(ceil_div(P, kThreads / kWarp));
  dispatch_float(args.x.dtype, [&]<class T>() {
    const Arrays<T> in{.x = pointer<T>(args.x),
                       .dt_raw = pointer<T>(args.dt_raw),
                       .B = pointer<T>(args.B),
                       .C = pointer<T>(args.C),
                       .dt_bias = args.dt_bias.as<float>(),
                       .A_log = args.A_log.as<float>(),
                       .D = args.D.as<float>(),
                       .state = args.state.as<float>(),
                       .y = pointer<T>(args.y),
                       .x_stride = args.x.row_stride,
                       .dt_raw_stride = args.dt_raw.row_stride,
                       .B_stride = args.B.row_stride,
                       .C_stride = args.C.row_stride,
                       .state_stride = args.state.row_stride,
                       .y_stride = args.y.row_stride,
                       .H = H,
                       .P = P,
                       .G = args.B.dim(1),
                       .N = args.B.dim(2),
                       .dt_min = float(args.dt_min),
                       .dt_max = float(args.dt_max)};
    launch(ctx, "ssd_step", {.blocks = {unsigned(batch * H), tiles}, .threads = kThreads},
           step_kernel<T>, in);
  });
}

}  // namespace sluice::cuda
