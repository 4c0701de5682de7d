// B batch, T queries, Hq query heads, hd head dim
#include "kernels/attention/attention_cuda.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention/attention_plain_cuda.h"
#include "kernels/attention/attention_tensor_cuda.h"
#include "kernels/core/packs.h"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <class Args>
float scale_of(const Args& args) {
  return float(args.scale != 0 ? args.scale : 1 / std::sqrt(double(args.q.dim(3))));
}

template <class T>
ForwardParams<T> params_of(const AttentionForward& args) {
  return {.sizes = sizes_of(args),
          .mask = mask_of(args),
          .q = HeadRows<const T>(args.q),
          .k = HeadRows<const T>(args.k),
          .v = HeadRows<const T>(args.v),
          .y = HeadRows<T>(args.y),
          .lse = optional_pointer<float>(args.lse),
          .lse_stride = args.lse.row_stride,
          .scale = scale_of(args)};
}

template <class T>
BackwardParams<T> params_of(const AttentionBackward& args, const TensorView& stats) {
  return {.sizes = sizes_of(args),
          .mask = mask_of(args),
          .dy = HeadRows<const T>(args.dy),
          .q = HeadRows<const T>(args.q),
          .k = HeadRows<const T>(args.k),
          .v = HeadRows<const T>(args.v),
          .y = HeadRows<const T>(args.y),
          .lse = args.lse.as<float>(),
          .lse_stride = args.lse.row_stride,
          .stats = static_cast<const QueryStats*>(stats.data),
          .dq = HeadRows<T>(args.dq),
          .dk = HeadRows<T>(args.dk),
          .dv = HeadRows<T>(args.dv),
          .scale = scale_of(args),
          .add_to_dq = args.add_to_dq};
}

// The elements of a head that one lane of a warp takes: kWidth neighbours of every kWidth * 32.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Lane {
  T values[kWidth];
  __device__ static const Lane& at(const T* head, int i) {
    return *reinterpret_cast<const Lane*>(head + i);
  }
  __device__ static Lane& at(T* head, int i) { return *reinterpret_cast<Lane*>(head + i); }
};

// A warp sums one query's dy . y, and notes its bounds. The floor is one read of both.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_stats_kernel(BackwardParams<T> p, QueryStats* stats) {
  using Part = Lane<T, kWidth>;
  const auto [B, T_, S, Hq, Hkv, hd] = p.sizes;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= int64_t(B) * T_ * Hq) return;
  const int h = int(n % Hq), t = int(n / Hq % T_), b = int(n / Hq / T_);
  const T* const dy = p.dy.head(b, int64_t(h) * hd) + t * p.dy.stride;
  const T* const y = p.y.head(b, int64_t(h) * hd) + t * p.y.stride;
  float dot = 0;
  for (int i = threadIdx.x % kWarp * kWidth; i < hd; i += kWarp * kWidth) {
    const Part dy_part = Part::at(dy, i), y_part = Part::at(y, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      dot += to_float(dy_part.values[j]) * to_float(y_part.values[j]);
  }
  dot = warp_sum(dot);
  if (threadIdx.x % kWarp != 0) return;
  const float lse = p.lse[(int64_t(b) * T_ + t) * p.lse_stride + h];
  stats[(int64_t(b) * Hq + h) * T_ + t] = {.log2_sum = lse == -INFINITY ? INFINITY : lse * kLog2E,
                                           .dy_y = dot,
                                           .begin = p.mask.begin(b, t),
                                           .end = p.mask.end(t)};
}

template <class T>
struct MergeParams {
  const T* part_y;
  T* y;
  const float* part_lse;
  float* lse;
  int64_t part_y_stride, y_stride, part_lse_stride, lse_stride;
  int64_t rows;
  int heads, hd;
};

// A warp joins one query's two results. The floor is two reads and a write of y.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) attention_merge_kernel(MergeParams<T> p) {
  using Part = Lane<T, kWidth>;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= p.rows * p.heads) return;
  const int64_t row = n / p.heads;
  const int h = int(n % p.heads);
  float& lse = p.lse[row * p.lse_stride + h];
  const float own = lse, part = p.part_lse[row * p.part_lse_stride + h];
  if (part == -INFINITY) return;
  const float largest = fmaxf(own, part);
  const float own_weight = expf(own - largest), part_weight = expf(part - largest);
  const float sum = own_weight + part_weight;
  T* const y = p.y + row * p.y_stride + int64_t(h) * p.hd;
  const T* const part_y = p.part_y + row * p.part_y_stride + int64_t(h) * p.hd;
  for (int i = threadIdx.x % kWarp * kWidth; i < p.hd; i += kWarp * kWidth) {
    Part joined = Part::at(y, i);
    const Part other = Part::at(part_y, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float weighted =
          own_weight * to_float(joined.values[j]) + part_weight * to_float(other.values[j]);
      joined.values[j] = from_float<T>(weighted / sum);
    }
    Part::at(y, i) = joined;
  }
  __syncwarp();  // all have read lse
  if (threadIdx.x % kWarp == 0) lse = largest + logf(sum);
}

// A thread moves one query's statistic between (B, T, Hq), rows `stride` apart, and (B, Hq, T).
__global__ void __launch_bounds__(kThreads)
    lse_transpose_kernel(float* lse, int64_t stride, float* stats, int T, int heads, int64_t count,
                         bool to_lse) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= count) return;
  const int64_t row = n / heads;
  const int h = int(n % heads);
  float& in_row = lse[row * stride + h];
  float& in_head = stats[(row / T * heads + h) * T + row % T];
  to_lse ? in_row = in_head : in_head = in_row;
}

void transpose_lse(const Context& ctx, float* lse, const ConstTensorView& shape, float* stats,
                   bool to_lse) {
  const int64_t count = shape.numel();
  launch(ctx, "attention's statistics",
         {.blocks = unsigned(ceil_div(count, kThreads)), .threads = kThreads}, lse_transpose_kernel,
         lse, shape.row_stride, stats, int(shape.dim(1)), int(shape.dim(2)), count, to_lse);
}

// Whether heads are 16-byte pieces of rows.
template <class T>
bool takes_packs(int64_t hd, std::initializer_list<const TensorView*> outputs,
                 std::initializer_list<const ConstTensorView*> inputs) {
  const auto takes = [](const auto* view) { return aligned_rows(*view); };
  return hd % Pack<T>::kWidth == 0 && std::all_of(outputs.begin(), outputs.end(), takes) &&
         std::all_of(inputs.begin(), inputs.end(), takes);
}

Grid warp_each(int64_t count) {
  return {.blocks = unsigned(ceil_div(count, kWarps)), .threads = kThreads};
}

}  // namespace

void attention_forward(const Context& ctx, const AttentionForward& args) {
  dispatch_float(args.q.dtype, [&]<class T>() {
    const ForwardParams<T> params = params_of<T>(args);
    if constexpr (std::is_same_v<T, Bf16>) {
      if (takes_tensor_cores(params)) return attention_forward_tensor(ctx, params);
    }
    attention_forward_plain<T>(ctx, params);
  });
}

void lse_from_stats(const Context& ctx, const float* stats, const TensorView& lse) {
  transpose_lse(ctx, lse.as<float>(), lse, const_cast<float*>(stats), /*to_lse=*/true);
}

void stats_from_lse(const Context& ctx, const ConstTensorView& lse, float* stats) {
  transpose_lse(ctx, const_cast<float*>(lse.as<float>()), lse, stats, /*to_lse=*/false);
}

void attention_merge(const Context& ctx, const AttentionMerge& args) {
  dispatch_float(args.y.dtype, [&]<class T>() {
    const MergeParams<T> params{.part_y = pointer<T>(args.part_y),
                                .y = pointer<T>(args.y),
                                .part_lse = args.part_lse.as<float>(),
                                .lse = args.lse.as<float>(),
                                .part_y_stride = args.part_y.row_stride,
                                .y_stride = args.y.row_stride,
                                .part_lse_stride = args.part_lse.row_stride,
                                .lse_stride = args.lse.row_stride,
                                .rows = args.y.rows(),
                                .heads = int(args.y.dim(2)),
                                .hd = int(args.y.dim(3))};
    const bool packs = takes_packs<T>(params.hd, {&args.y}, {&args.part_y});
    launch(ctx, "attention_merge", warp_each(params.rows * params.heads),
           packs ? attention_merge_kernel<T, Pack<T>::kWidth> : attention_merge_kernel<T, 1>,
           params);
  });
}

void attention_backward(const Context& ctx, const AttentionBackward& args, TensorView stats) {
  dispatch_float(args.q.dtype, [&]<class T>() {
    const BackwardParams<T> params = params_of<T>(args, stats);
    const bool packs = takes_packs<T>(params.sizes.hd, {}, {&args.dy, &args.y});
    launch(ctx, "attention_backward", warp_each(args.lse.numel()),
           packs ? attention_stats_kernel<T, Pack<T>::kWidth> : attention_stats_kernel<T, 1>,
           params, static_cast<QueryStats*>(stats.data));
    if constexpr (std::is_same_v<T, Bf16>) {
      if (takes_tensor_cores(params)) {
        attention_backward_dkv_tensor(ctx, params);
        attention_backward_dq_tensor(ctx, params);
        return;
      }
    }
    attention_backward_plain<T>(ctx, params);
  });
}

}  // namespace sluice::cuda
