// B batch, T tokens, R rotary dims
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/rope/rope_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 4;  // of one block: they share the frequencies

template <class T>
struct RopeParams {
  T* x;
  int64_t stride;
  const int32_t* positions;
  int64_t positions_stride;
  int64_t rows, tokens;  // B T, T
  int heads, head_dim, half;
  double theta;
  int direction;
};

// kWidth neighbouring pairs: by 16 bytes where the tensor allows it, else one by one.
template <class T, int kWidth>
__device__ void rotate(T* a, T* b, const float2* turn) {
  if constexpr (kWidth == 1) {
    const float first = to_float(*a), second = to_float(*b);
    *a = from_float<T>(first * turn->x - second * turn->y);
    *b = from_float<T>(second * turn->x + first * turn->y);
  } else {
    Pack<T> first = Pack<T>::load(a), second = Pack<T>::load(b);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) rotate<T, 1>(&first.values[i], &second.values[i], turn + i);
    first.store(a);
    second.store(b);
  }
}

// A block turns kTokens rows. The floor is one read and one write of the first R columns; the sines
// of a token, in double, are computed once for all of its heads.
// Shared memory: `half` frequencies (f64), then kTokens x half cosines and sines (f32).
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeParams<T> p) {
  extern __shared__ double frequencies[];
  float2* const turns = reinterpret_cast<float2*>(frequencies + p.half);
  const int64_t first_row = int64_t(blockIdx.x) * kTokens;
  const int rows = int(min(int64_t(kTokens), p.rows - first_row));
  for (int i = threadIdx.x; i < p.half; i += kThreads) {
    frequencies[i] = pow(p.theta, -double(i) / p.half);
  }
  __syncthreads();
  for (int n = threadIdx.x; n < rows * p.half; n += kThreads) {
    const int64_t row = first_row + n / p.half;
    const int32_t position = p.positions[row / p.tokens * p.positions_stride + row % p.tokens];
    double sine, cosine;
    sincos(position * frequencies[n % p.half], &sine, &cosine);
    turns[n] = {float(cosine), float(p.direction * sine)};
  }
  __syncthreads();
  const int packs = p.half / kWidth;
  for (int n = threadIdx.x; n < rows * p.heads * packs; n += kThreads) {
    const int column = n % packs * kWidth, head = n / packs % p.heads, row = n / packs / p.heads;
    T* const a = p.x + (first_row + row) * p.stride + int64_t(head) * p.head_dim + column;
    rotate<T, kWidth>(a, a + p.half, turns + row * p.half + column);
  }
}

bool takes_packs(const Rope& args) {
  return rope_in_packs(args.x.dtype, args.x.dim(3), args.rotary_dims) && in_packs(args.x);
}

}  // namespace

void rope(const Context& ctx, const Rope& args, int direction) {
  if (args.rotary_dims == 0) return;
  dispatch_float(args.x.dtype, [&]<class T>() {
    const RopeParams<T> params{.x = pointer<T>(args.x),
                               .stride = args.x.row_stride,
                               .positions = args.positions.as<int32_t>(),
                               .positions_stride = args.positions.row_stride,
                               .rows = args.x.rows(),
                               .tokens = args.x.dim(1),
                               .heads = int(args.x.dim(2)),
                               .head_dim = int(args.x.dim(3)),
                               .half = int(args.rotary_dims / 2),
                               .theta = args.theta,
                               .direction = direction};
    const Grid grid{.blocks = unsigned(ceil_div(params.rows, kTokens)),
                    .threads = kThreads,
                    .shared_bytes = params.half * (sizeof(double) + kTokens * sizeof(float2))};
    launch(ctx, "rope", grid,
           takes_packs(args) ? rope_kernel<T, Pack<T>::kWidth> : rope_kernel<T, 1>, params);
  });
}

}  // namespace sluice::cuda
