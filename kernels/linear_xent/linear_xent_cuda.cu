#include "kernels/linear_xent/linear_xent_cuda.h"

#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

constexpr int kRowThreads = 512;
constexpr int kInFlight = 4;  // loads of 16 bytes by a thread before it computes
// Of a row in shared memory: two blocks share the 227 KB of an SM.
constexpr size_t kMostSharedRow = size_t{112} << 10;

enum class Pass {
  loss,             // losses alone: the row is read once
  gradient,         // the row is read again, from the L2 cache at best
  gradient_shared,  // the row waits for its second use in shared memory
};

template <class T>
struct XentRows {
  T* logits;
  int64_t stride, first, row_tokens;
  int V;
  const int32_t* targets;
  int64_t targets_stride;
  const float* weights;  // or null
  int64_t weights_stride;
  float* losses;
  int64_t losses_stride;
  double loss_scale;
  const double* step_scale;  // or null
};

// A running maximum, and the sum of exponentials relative to it.
struct ExpSum {
  float largest = -INFINITY;
  float sum = 0;

  // NaN stays NaN: fmaxf passes it over, the exponential does not.
  template <int kCount>
  __device__ void add(const float (&values)[kCount]) {
    float most = largest;
#pragma unroll
    for (int i = 0; i < kCount; ++i) most = fmaxf(most, values[i]);
    if (most != largest) sum *= __expf(largest - most);
    largest = most;
    const float base = most == -INFINITY ? 0 : most;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += __expf(values[i] - base);
  }
};

// Over the block; the same on every thread.
__device__ ExpSum reduce(ExpSum mine, float* room) {
  constexpr int kWarps = kRowThreads / kWarp;
  ExpSum all;
  const float warp_largest = warp_max(mine.largest);
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = warp_largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) all.largest = fmaxf(all.largest, room[warp]);
  __syncthreads();
  const float factor = mine.largest == all.largest ? 1 : __expf(mine.largest - all.largest);
  all.sum = block_sum<kRowThreads>(mine.sum * factor, room);
  return all;
}

// The logits of pack `pack` of a row; -infinity beyond V.
template <class T>
struct LogitPack {
  static constexpr int kWidth = Pack<T>::kWidth;
  float values[kWidth];

  __device__ LogitPack(const Pack<T>& pack, int first, int V) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = to_float(pack.values[i]);
    if (first + kWidth > V) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (first + i >= V) values[i] = -INFINITY;
      }
    }
  }
};

template <class T>
__device__ ExpSum exp_sum_of(const T* logits, int V) {
  constexpr int kWidth = Pack<T>::kWidth;
  constexpr int kStep = kRowThreads * kWidth;
  ExpSum sum;
  for (int first = int(threadIdx.x) * kWidth; first < V; first += kInFlight * kStep) {
    Pack<T> packs[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kStep < V) packs[i] = Pack<T>::load(logits + first + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = first + i * kStep;
      if (at < V) sum.add(LogitPack<T>(packs[i], at, V).values);
    }
  }
  return sum;
}

// gradient = factor * exp(logits - largest), less `scale` at the target. Each thread reads what it
// read in the first pass, and may write it to the same place.
template <class T>
__device__ void write_gradient(const T* logits, T* gradient, int V, int target, float largest,
                               float factor, float scale) {
  constexpr int kWidth = Pack<T>::kWidth;
  constexpr int kStep = kRowThreads * kWidth;
  for (int first = int(threadIdx.x) * kWidth; first < V; first += kInFlight * kStep) {
    Pack<T> packs[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kStep < V) packs[i] = Pack<T>::load(logits + first + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = first + i * kStep;
      if (at >= V) continue;
      const LogitPack<T> x(packs[i], at, V);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float share = factor * __expf(x.values[j] - largest);
        packs[i].values[j] = from_float<T>(at + j == target ? share - scale : share);
      }
      packs[i].store(gradient + at);
    }
  }
}

template <class T>
__device__ void fill(T* logits, int V, float value) {
  for (int v = int(threadIdx.x); v < V; v += kRowThreads) logits[v] = from_float<T>(value);
}

// The row into shared memory. A thread copies the pieces that it reads itself: no barrier is
// needed.
template <class T>
__device__ const T* copy_row(const T* logits, int V) {
  extern __shared__ __align__(16) uint8_t shared[];
  T* const row = reinterpret_cast<T*>(shared);
  constexpr int kWidth = Pack<T>::kWidth;
  for (int i = int(threadIdx.x) * kWidth; i < V; i += kRowThreads * kWidth)
    copy_async_16(row + i, logits + i);
  commit_copies();
  wait_copies<0>();
  return row;
}

// A block a row. The first pass finds maximum and sum together, the second writes the gradient.
// Device memory sees each logit read once and each gradient written once: 4 bytes an element in
// bf16, 0.14 ms for 2048 tokens of a vocabulary of 50288. Two blocks an SM: while one computes
// (two exponentials an element), the other one's row travels.
template <class T, Pass kPass>
__global__ void __launch_bounds__(kRowThreads, 2) xent_rows_kernel(XentRows<T> p) {
  __shared__ float room[kRowThreads / kWarp];
  const int64_t token = p.first + blockIdx.x;
  const int64_t b = token / p.row_tokens, t = token - b * p.row_tokens;
  T* const logits = p.logits + blockIdx.x * p.stride;
  float& loss = p.losses[b * p.losses_stride + t];
  const int target = p.targets[b * p.targets_stride + t];
  if (target < 0 || target >= p.V) {
    const float result = target == -1 ? 0.0f : NAN;
    if (threadIdx.x == 0) loss = result;
    if constexpr (kPass != Pass::loss) fill(logits, p.V, result);
    return;
  }
  const float weight = p.weights != nullptr ? p.weights[b * p.weights_stride + t] : 1.0f;
  const T* const row = kPass == Pass::gradient_shared ? copy_row<T>(logits, p.V) : logits;
  const ExpSum all = reduce(exp_sum_of(row, p.V), room);
  const float target_logit = to_float(logits[target]);
  if (threadIdx.x == 0) loss = weight * (logf(all.sum) + (all.largest - target_logit));
  if constexpr (kPass != Pass::loss) {
    __syncthreads();  // the target's logit has been read
    const double step_scale = p.step_scale != nullptr ? *p.step_scale : 1.0;
    const float scale = float(p.loss_scale * step_scale) * weight;
    write_gradient(row, logits, p.V, target, all.largest, scale / all.sum, scale);
  }
}

template <class T, Pass kPass>
void launch_rows(const Context& ctx, const XentRows<T>& rows, int64_t count) {
  const bool shared = kPass == Pass::gradient_shared;
  launch(ctx, "linear_xent",
         {.blocks = unsigned(count),
          .threads = kRowThreads,
          .shared_bytes = shared ? size_t(ceil_div(rows.V, 16)) * 16 * sizeof(T) : 0},
         xent_rows_kernel<T, kPass>, rows);
}

constexpr int kSumThreads = 1024;

// Each thread its tokens in order, then the threads pairwise.
__global__ void __launch_bounds__(kSumThreads)
    loss_sum_kernel(const float* losses, int64_t stride, int64_t rows, int64_t row_tokens,
                    double* loss_sum) {
  __shared__ double sums[kSumThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < rows * row_tokens; i += kSumThreads)
    sum += losses[i / row_tokens * stride + i % row_tokens];
  sums[threadIdx.x] = sum;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *loss_sum = sums[0];
}

}  // namespace

void xent_chunk(const Context& ctx, const XentChunk& chunk) {
  dispatch_float(chunk.logits.dtype, [&]<class T>() {
    const XentRows<T> rows{
        .logits = pointer<T>(chunk.logits),
        .stride = chunk.logits.row_stride,
        .first = chunk.first,
        .row_tokens = chunk.targets.row_size(),
        .V = int(chunk.logits.row_size()),
        .targets = chunk.targets.as<int32_t>(),
        .targets_stride = chunk.targets.row_stride,
        .weights = chunk.weights ? chunk.weights.as<float>() : nullptr,
        .weights_stride = chunk.weights.row_stride,
        .losses = chunk.losses.as<float>(),
        .losses_stride = chunk.losses.row_stride,
        .loss_scale = chunk.loss_scale,
        .step_scale = chunk.step_scale ? chunk.step_scale.as<double>() : nullptr,
    };
    const int64_t count = chunk.logits.rows();
    if (!chunk.with_gradient) return launch_rows<T, Pass::loss>(ctx, rows, count);
    if (size_t(rows.V + 16) * sizeof(T) <= kMostSharedRow)
      return launch_rows<T, Pass::gradient_shared>(ctx, rows, count);
    launch_rows<T, Pass::gradient>(ctx, rows, count);
  });
}

void xent_loss_sum(const Context& ctx, const ConstTensorView& losses, const TensorView& loss_sum) {
  launch(ctx, "linear_xent", {.blocks = 1, .threads = kSumThreads}, loss_sum_kernel,
         losses.as<float>(), losses.row_stride, losses.rows(), losses.row_size(),
         loss_sum.as<double>());
}

}  // namespace sluice::cuda
