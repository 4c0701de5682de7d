// B batch, T queries, Hq query heads, hd head dim
#include "kernels/attention/attention_cuda.h"

#include <cmath>

#include "kernels/attention/attention_plain_cuda.h"
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
          .stats = reinterpret_cast<QueryStats*>(stats.as<float>()),
          .dq = HeadRows<T>(args.dq),
          .dk = HeadRows<T>(args.dk),
          .dv = HeadRows<T>(args.dv),
          .scale = scale_of(args),
          .add_to_dq = args.add_to_dq};
}

// A warp sums one query's dy . y. The floor is one read of both.
template <class T>
__global__ void __launch_bounds__(kThreads) attention_stats_kernel(BackwardParams<T> p) {
  const auto [B, T_, S, Hq, Hkv, hd] = p.sizes;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= int64_t(B) * T_ * Hq) return;
  const int h = int(n % Hq), t = int(n / Hq % T_), b = int(n / Hq / T_);
  const T* const dy = p.dy.head(b, int64_t(h) * hd) + t * p.dy.stride;
  const T* const y = p.y.head(b, int64_t(h) * hd) + t * p.y.stride;
  float dot = 0;
  for (int i = threadIdx.x % kWarp; i < hd; i += kWarp) dot += to_float(dy[i]) * to_float(y[i]);
  dot = warp_sum(dot);
  if (threadIdx.x % kWarp != 0) return;
  const float lse = p.lse[(int64_t(b) * T_ + t) * p.lse_stride + h];
  p.stats[(int64_t(b) * Hq + h) * T_ + t] = {.log2_sum = lse == -INFINITY ? INFINITY : lse * kLog2E,
                                             .dy_y = dot};
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
template <class T>
__global__ void __launch_bounds__(kThreads) attention_merge_kernel(MergeParams<T> p) {
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
  for (int i = threadIdx.x % kWarp; i < p.hd; i += kWarp) {
    y[i] = from_float<T>((own_weight * to_float(y[i]) + part_weight * to_float(part_y[i])) / sum);
  }
  __syncwarp();  // all have read lse
  if (threadIdx.x % kWarp == 0) lse = largest + logf(sum);
}

Grid warp_each(int64_t count) {
  return {.blocks = unsigned(ceil_div(count, kWarps)), .threads = kThreads};
}

}  // namespace

void attention_forward(const Context& ctx, const AttentionForward& args) {
  dispatch_float(args.q.dtype,
                 [&]<class T>() { attention_forward_plain<T>(ctx, params_of<T>(args)); });
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
    launch(ctx, "attention_merge", warp_each(params.rows * params.heads), attention_merge_kernel<T>,
           params);
  });
}

void attention_backward(const Context& ctx, const AttentionBackward& args, TensorView stats) {
  dispatch_float(args.q.dtype, [&]<class T>() {
    const BackwardParams<T> params = params_of<T>(args, stats);
    launch(ctx, "attention_backward", warp_each(args.lse.numel()), attention_stats_kernel<T>,
           params);
    attention_backward_plain<T>(ctx, params);
  });
}

}  // namespace sluice::cuda
