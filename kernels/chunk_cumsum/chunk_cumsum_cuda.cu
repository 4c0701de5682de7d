// B batch, T tokens, H heads, Q chunk length, M chunks of a row
//
// Floor: bytes. At T = 16384, H = 64 the forward reads 2 MB and writes 8, the backward reads 10 and
// writes 2: 4 us each, about what a launch costs. So these kernels are shaped to be short: a block
// takes a chunk and 32 heads, a lane a head (neighbouring heads lie side by side in memory), a warp
// a run of the chunk's tokens. Two passes: the runs' sums, then each run again from the sum of the
// runs before it; the second finds its operands in the cache. Sums are double: the serial part is
// a sixteenth of the chunk.
#include "kernels/chunk_cumsum/chunk_cumsum_cuda.h"

#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;

template <class T>
struct Steps {
  const T* dt_raw;
  const float* dt_bias;
  const float* A_log;
  const int32_t* doc_begin;
  int64_t dt_raw_stride, doc_begin_stride;
  int64_t tokens, H, chunk, M;
  float dt_min, dt_max;
};

template <class T, class Args>
Steps<T> steps_of(const Args& args) {
  return {.dt_raw = pointer<T>(args.dt_raw),
          .dt_bias = args.dt_bias.template as<float>(),
          .A_log = args.A_log.template as<float>(),
          .doc_begin = args.doc_begin.template as<int32_t>(),
          .dt_raw_stride = args.dt_raw.row_stride,
          .doc_begin_stride = args.doc_begin.row_stride,
          .tokens = args.dt_raw.dim(1),
          .H = args.dt_raw.dim(2),
          .chunk = args.chunk,
          .M = num_chunks(args.dt_raw.dim(1), args.chunk),
          .dt_min = float(args.dt_min),
          .dt_max = float(args.dt_max)};
}

template <class T>
Grid grid_of(const Steps<T>& steps, int64_t batch) {
  return {.blocks = {unsigned(batch * steps.M), unsigned(ceil_div(steps.H, kWarp))},
          .threads = kThreads};
}

// A head (the lane's) and a run of tokens (the warp's) of the block's chunk.
template <class T>
struct Run {
  const T* dt_raw;           // of the row's first token
  const int32_t* doc_begin;  // of the row
  int64_t stride;
  int64_t first_row;   // of the row of the batch
  int64_t h;           // may lie beyond the last head: such a lane must not load or store
  int64_t begin, end;  // tokens of the row
  float bias, A;
  float dt_min, dt_max;

  __device__ explicit Run(const Steps<T>& in) {
    const int64_t b = blockIdx.x / in.M;
    const ChunkSpan span(blockIdx.x % in.M, in.chunk, in.tokens);
    const int64_t length = (span.size() + kWarps - 1) / kWarps;
    const int64_t warp = threadIdx.x / kWarp;
    h = blockIdx.y * int64_t(kWarp) + threadIdx.x % kWarp;
    begin = std::min(span.end, span.begin + warp * length);
    end = std::min(span.end, begin + length);
    if (h >= in.H) end = begin;
    first_row = b * in.tokens;
    dt_raw = in.dt_raw + first_row * in.dt_raw_stride;
    doc_begin = in.doc_begin + b * in.doc_begin_stride;
    stride = in.dt_raw_stride;
    bias = h < in.H ? in.dt_bias[h] : 0.0f;
    A = h < in.H ? -expf(in.A_log[h]) : 0.0f;
    dt_min = in.dt_min;
    dt_max = in.dt_max;
  }
  __device__ float raw(int64_t t) const { return to_float(dt_raw[t * stride + h]) + bias; }
  __device__ float clamp(float soft) const { return fminf(fmaxf(soft, dt_min), dt_max); }
  __device__ bool starts(int64_t t) const { return doc_begin[t] == t; }
};

// What the runs of a chunk leave to each other: a sum a head, and whether a document starts in the
// run, so that nothing before it counts.
struct RunSums {
  double sum[kWarps][kWarp];
  bool restarted[kWarps][kWarp];

  __device__ void put(double value, bool restart) {
    sum[threadIdx.x / kWarp][threadIdx.x % kWarp] = value;
    restarted[threadIdx.x / kWarp][threadIdx.x % kWarp] = restart;
  }
  // What enters this thread's run, from the runs [first, last) in steps of `step`.
  __device__ double entering(int first, int last, int step) const {
    const int lane = threadIdx.x % kWarp;
    double carry = 0;
    for (int run = first; run != last; run += step)
      carry = restarted[run][lane] ? sum[run][lane] : carry + sum[run][lane];
    return carry;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Steps<T> in, float* dt_out, int64_t dt_stride, float* cum_out,
                   int64_t cum_stride) {
  __shared__ RunSums sums;
  const Run<T> run(in);
  double sum = 0;
  bool restarted = false;
#pragma unroll 4
  for (int64_t t = run.begin; t < run.end; ++t) {
    const double a = double(run.clamp(softplus(run.raw(t)))) * run.A;
    const bool starts = run.starts(t);
    sum = starts ? a : sum + a;
    restarted = restarted || starts;
  }
  sums.put(sum, restarted);
  __syncthreads();
  double cum = sums.entering(0, threadIdx.x / kWarp, 1);
#pragma unroll 4
  for (int64_t t = run.begin; t < run.end; ++t) {
    const float dt = run.clamp(softplus(run.raw(t)));
    const double a = double(dt) * run.A;
    cum = run.starts(t) ? a : cum + a;
    dt_out[(run.first_row + t) * dt_stride + run.h] = dt;
    cum_out[(run.first_row + t) * cum_stride + run.h] = float(cum);
  }
}

template <class T>
struct Gradients {
  const float* ddt;
  const float* dcum;
  T* ddt_raw;
  int64_t ddt_stride, dcum_stride, ddt_raw_stride;
  float* partial;  // (B * M, 2H)
};

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Steps<T> in, Gradients<T> out) {
  __shared__ RunSums sums;
  const Run<T> run(in);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double sum = 0;
  bool restarted = false;
#pragma unroll 4
  for (int64_t t = run.end - 1; t >= run.begin; --t) {
    sum += out.dcum[(run.first_row + t) * out.dcum_stride + run.h];
    const bool starts = run.starts(t);
    sum = starts ? 0.0 : sum;
    restarted = restarted || starts;
  }
  sums.put(sum, restarted);
  __syncthreads();
  double e = sums.entering(kWarps - 1, warp, -1);  // the reverse cumulative sum of dcum
  double ddt_bias = 0, dA = 0;
#pragma unroll 2
  for (int64_t t = run.end - 1; t >= run.begin; --t) {
    const int64_t row = run.first_row + t;
    const float raw = run.raw(t), soft = softplus(raw);
    const bool clamped = soft < run.dt_min || soft > run.dt_max;
    e += out.dcum[row * out.dcum_stride + run.h];
    dA += run.clamp(soft) * e;
    const float ddt = out.ddt[row * out.ddt_stride + run.h] + run.A * float(e);
    const float ddt_raw = clamped ? 0.0f : ddt * sigmoid(raw);
    out.ddt_raw[row * out.ddt_raw_stride + run.h] = from_float<T>(ddt_raw);
    ddt_bias += ddt_raw;
    e = run.starts(t) ? 0.0 : e;
  }
  // The runs' shares, in order; the room of the sums is free once all have read it.
  for (int which = 0; which < 2; ++which) {
    __syncthreads();
    sums.sum[warp][lane] = which == 0 ? ddt_bias : dA * run.A;
    __syncthreads();
    if (warp != 0 || run.h >= in.H) continue;
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += sums.sum[w][lane];
    out.partial[blockIdx.x * 2 * in.H + which * in.H + run.h] = float(total);
  }
}

// A block adds up 32 columns of the chunks' shares: each warp every kWarps-th chunk, then the warps
// in order.
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(const float* partial, int64_t chunks, int64_t H, float* ddt_bias,
                      float* dA_log) {
  __shared__ double sums[kWarps][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = blockIdx.x * int64_t(kWarp) + lane;
  double sum = 0;
  if (column < 2 * H) {
#pragma unroll 4
    for (int64_t chunk = warp; chunk < chunks; chunk += kWarps)
      sum += partial[chunk * 2 * H + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= 2 * H) return;
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  float& to = column < H ? ddt_bias[column] : dA_log[column - H];
  to += float(total);
}

}  // namespace

void chunk_cumsum_forward(const Context& ctx, const ChunkCumsumForward& args) {
  dispatch_float(args.dt_raw.dtype, [&]<class T>() {
    const auto steps = steps_of<T>(args);
    launch(ctx, "chunk_cumsum_forward", grid_of(steps, args.dt_raw.dim(0)), forward_kernel<T>,
           steps, args.dt.as<float>(), args.dt.row_stride, args.cum.as<float>(),
           args.cum.row_stride);
  });
}

void chunk_cumsum_backward(const Context& ctx, const ChunkCumsumBackward& args,
                           TensorView partial) {
  const int64_t H = args.dt_raw.dim(2);
  dispatch_float(args.dt_raw.dtype, [&]<class T>() {
    const auto steps = steps_of<T>(args);
    const Gradients<T> gradients{.ddt = args.ddt.as<float>(),
                                 .dcum = args.dcum.as<float>(),
                                 .ddt_raw = pointer<T>(args.ddt_raw),
                                 .ddt_stride = args.ddt.row_stride,
                                 .dcum_stride = args.dcum.row_stride,
                                 .ddt_raw_stride = args.ddt_raw.row_stride,
                                 .partial = partial.as<float>()};
    launch(ctx, "chunk_cumsum_backward", grid_of(steps, args.dt_raw.dim(0)), backward_kernel<T>,
           steps, gradients);
  });
  launch(ctx, "chunk_cumsum_backward",
         {.blocks = unsigned(ceil_div(2 * H, kWarp)), .threads = kThreads}, sum_chunks_kernel,
         partial.as<float>(), partial.rows(), H, args.ddt_bias.as<float>(),
         args.dA_log.as<float>());
}

}  // namespace sluice::cuda
