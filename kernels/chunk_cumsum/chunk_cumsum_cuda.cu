// B batch, T tokens, H heads, Q chunk length, M chunks of a row
//
// Floor: bytes. At T = 16384, H = 64 the forward reads 2 MB and writes 8, the backward reads 10 and
// writes 2: 4 us each, about what a launch costs, so these kernels are shaped to wait for memory
// once. A block takes a chunk and eight heads (whose steps are a sector of 32 bytes), 256 tokens at
// a time: all loads are issued together, a warp scans the tokens of one head in shared memory by
// shuffles, and all store together. Sums are double.
#include "kernels/chunk_cumsum/chunk_cumsum_cuda.h"

#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {
namespace {

constexpr int kHeads = 8;     // of a block: a warp each
constexpr int kTokens = 256;  // at a time
constexpr int kThreads = kHeads * kWarp;
constexpr int kRows = kThreads / kHeads;  // tokens apart of a thread's elements
constexpr int kSteps = kTokens / kRows;   // elements of a thread
constexpr int kRun = kTokens / kWarp;     // tokens of a lane while a warp scans

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
  return {.blocks = {unsigned(batch * steps.M), unsigned(ceil_div(steps.H, kHeads))},
          .threads = kThreads};
}

// What a thread loads and stores: tokens row(i), i < kSteps, of one head.
template <class T>
struct Element {
  int64_t first_row;   // of the row of the batch
  int64_t begin, end;  // tokens of the chunk, of the row
  int64_t h;
  bool inside;  // h is a head
  int head, token;
  const T* dt_raw;
  const int32_t* doc_begin;
  int64_t stride;
  float bias, A, dt_min, dt_max;

  __device__ explicit Element(const Steps<T>& in) {
    const int64_t b = blockIdx.x / in.M;
    const ChunkSpan span(blockIdx.x % in.M, in.chunk, in.tokens);
    begin = span.begin;
    end = span.end;
    first_row = b * in.tokens;
    head = threadIdx.x % kHeads;
    token = threadIdx.x / kHeads;
    const int64_t wanted = blockIdx.y * int64_t(kHeads) + head;
    inside = wanted < in.H;
    h = inside ? wanted : in.H - 1;
    dt_raw = in.dt_raw + first_row * in.dt_raw_stride + h;
    doc_begin = in.doc_begin + b * in.doc_begin_stride;
    stride = in.dt_raw_stride;
    bias = in.dt_bias[h];
    A = -expf(in.A_log[h]);
    dt_min = in.dt_min;
    dt_max = in.dt_max;
  }
  __device__ float raw(int64_t t) const { return to_float(dt_raw[t * stride]) + bias; }
  __device__ float clamp(float soft) const { return fminf(fmaxf(soft, dt_min), dt_max); }
};

// Sums over tokens that restart: `restarts` says that nothing before this token counts.
struct Sum {
  double value;
  bool restarts;
};
__device__ inline Sum then(const Sum& before, const Sum& after) {
  return {after.restarts ? after.value : before.value + after.value,
          before.restarts || after.restarts};
}

struct Block {
  float values[kHeads][kTokens + 4];
  bool starts[kTokens + 1];  // a document starts at the token; [kTokens]: at the one behind
  float sums[kHeads][kRows + 1];

  // The warp replaces its head's values by their running sums, forward or in reverse, from `carry`
  // on, and returns what goes on. Forward a token restarts the sum if it starts a document, in
  // reverse if the token behind it does.
  template <bool kForward>
  __device__ double scan(double carry) {
    const int lane = threadIdx.x % kWarp;
    float* const row = values[threadIdx.x / kWarp];
    const auto at = [&](int i) {
      const int s = lane * kRun + i;
      return kForward ? s : kTokens - 1 - s;
    };
    const auto restarts = [&](int s) { return starts[kForward ? s : s + 1]; };
    Sum run{0, false};
#pragma unroll
    for (int i = 0; i < kRun; ++i) run = then(run, {row[at(i)], restarts(at(i))});
    Sum through = run;  // of all lanes up to this one
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const Sum before{__shfl_up_sync(kFullWarp, through.value, offset),
                       bool(__shfl_up_sync(kFullWarp, int(through.restarts), offset))};
      if (lane >= offset) through = then(before, through);
    }
    const Sum all =
        then({carry, false}, {__shfl_sync(kFullWarp, through.value, kWarp - 1),
                              bool(__shfl_sync(kFullWarp, int(through.restarts), kWarp - 1))});
    Sum sum{__shfl_up_sync(kFullWarp, through.value, 1),
            bool(__shfl_up_sync(kFullWarp, int(through.restarts), 1))};
    sum = lane == 0 ? Sum{carry, false} : then({carry, false}, sum);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      sum = then(sum, {row[at(i)], restarts(at(i))});
      row[at(i)] = float(sum.value);
    }
    return all.value;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Steps<T> in, float* dt_out, int64_t dt_stride, float* cum_out,
                   int64_t cum_stride) {
  __shared__ Block block;
  const Element<T> element(in);
  double carry = 0;
  for (int64_t t0 = element.begin; t0 < element.end; t0 += kTokens) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int s = element.token + i * kRows;
      const int64_t t = t0 + s;
      float a = 0;
      if (t < element.end) {
        const float dt = element.clamp(softplus(element.raw(t)));
        a = dt * element.A;
        if (element.inside) dt_out[(element.first_row + t) * dt_stride + element.h] = dt;
      }
      block.values[element.head][s] = a;
    }
    const int64_t mine = t0 + threadIdx.x;
    block.starts[threadIdx.x] = mine < element.end && element.doc_begin[mine] == mine;
    __syncthreads();
    carry = block.template scan<true>(carry);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int s = element.token + i * kRows;
      if (t0 + s < element.end && element.inside)
        cum_out[(element.first_row + t0 + s) * cum_stride + element.h] =
            block.values[element.head][s];
    }
    __syncthreads();
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

// The block's shares of one gradient a head, added up in order.
__device__ inline void store_share(Block& block, float share, int64_t h, bool inside, float* to) {
  const int head = threadIdx.x % kHeads, token = threadIdx.x / kHeads;
  __syncthreads();
  block.sums[head][token] = share;
  __syncthreads();
  if (token != 0 || !inside) return;
  double total = 0;
  for (int i = 0; i < kRows; ++i) total += block.sums[head][i];
  to[h] = float(total);
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Steps<T> in, Gradients<T> out) {
  __shared__ Block block;
  const Element<T> element(in);
  double carry = 0, ddt_bias = 0, dA = 0;
  const int64_t size = element.end - element.begin;
  for (int64_t t0 = element.begin + (size - 1) / kTokens * kTokens; t0 >= element.begin;
       t0 -= kTokens) {
    float raw[kSteps], ddt[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int s = element.token + i * kRows;
      const bool valid = t0 + s < element.end;
      const int64_t t = valid ? t0 + s : element.end - 1, row = element.first_row + t;
      raw[i] = element.raw(t);
      ddt[i] = out.ddt[row * out.ddt_stride + element.h];
      block.values[element.head][s] = valid ? out.dcum[row * out.dcum_stride + element.h] : 0.0f;
    }
    for (int s = threadIdx.x; s <= kTokens; s += kThreads)
      block.starts[s] = t0 + s < element.end && element.doc_begin[t0 + s] == t0 + s;
    __syncthreads();
    carry = block.template scan<false>(carry);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int s = element.token + i * kRows;
      if (t0 + s >= element.end || !element.inside) continue;
      const float e = block.values[element.head][s];  // the reverse cumulative sum of dcum
      const float soft = softplus(raw[i]);
      const bool clamped = soft < element.dt_min || soft > element.dt_max;
      const float ddt_raw = clamped ? 0.0f : (ddt[i] + element.A * e) * sigmoid(raw[i]);
      out.ddt_raw[(element.first_row + t0 + s) * out.ddt_raw_stride + element.h] =
          from_float<T>(ddt_raw);
      ddt_bias += ddt_raw;
      dA += element.clamp(soft) * e;
    }
    __syncthreads();
  }
  float* const partial = out.partial + blockIdx.x * 2 * in.H;
  store_share(block, float(ddt_bias), element.h, element.inside, partial);
  store_share(block, float(dA) * element.A, element.h, element.inside, partial + in.H);
}

constexpr int kSumWarps = 16;
// A block adds up 32 columns of the chunks' shares: each warp every kSumWarps-th chunk, then the
// warps in order.
__global__ void __launch_bounds__(kSumWarps* kWarp)
    sum_chunks_kernel(const float* partial, int64_t chunks, int64_t H, float* ddt_bias,
                      float* dA_log) {
  __shared__ double sums[kSumWarps][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = blockIdx.x * int64_t(kWarp) + lane;
  double sum = 0;
  if (column < 2 * H) {
#pragma unroll 4
    for (int64_t chunk = warp; chunk < chunks; chunk += kSumWarps)
      sum += partial[chunk * 2 * H + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= 2 * H) return;
  double total = 0;
  for (int w = 0; w < kSumWarps; ++w) total += sums[w][lane];
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
         {.blocks = unsigned(ceil_div(2 * H, kWarp)), .threads = kSumWarps * kWarp},
         sum_chunks_kernel, partial.as<float>(), partial.rows(), H, args.ddt_bias.as<float>(),
         args.dA_log.as<float>());
}

}  // namespace sluice::cuda
