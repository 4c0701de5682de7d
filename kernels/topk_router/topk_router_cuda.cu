// A warp a token, everything of the token in shared memory: lane e % 32 owns expert e. The operator
// moves 4 (X + 2 k) bytes a token, a thousandth of what the experts do, so it is written for any X
// rather than for speed.
#include "kernels/topk_router/topk_router_cuda.h"

#include <algorithm>

#include "kernels/core/row_blocks.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

constexpr float kTinySum = 1e-20f;  // beside a sum of sigmoids that may all be 0

struct Router {
  int X, k, groups, topk_group;
  bool sigmoid, renormalise;
  float scale;

  Router(const RouterOptions& options, int64_t X)
      : X(int(X)),
        k(int(options.top_k)),
        groups(int(options.num_groups)),
        topk_group(int(options.topk_group)),
        sigmoid(options.score == RouterScore::sigmoid),
        renormalise(options.renormalise),
        scale(float(options.scale)) {}
};

// Rows of a matrix.
template <class T>
struct RowsOf {
  T* data;
  int64_t stride;
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T, class Void>
RowsOf<std::conditional_t<std::is_const_v<Void>, const T, T>> rows_of(
    const BasicTensorView<Void>& view) {
  return {pointer<T>(view), view.row_stride};
}

__device__ inline int lane_index() { return int(threadIdx.x) % kWarp; }
__device__ inline int64_t warp_index() {
  return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
}
// This warp's part of the block's dynamic shared memory, `words` 4-byte words long.
__device__ inline float* warp_memory(int words) {
  extern __shared__ double shared[];
  return reinterpret_cast<float*>(shared) + threadIdx.x / kWarp * words;
}

// p = softmax(logits); returns their logsumexp.
__device__ inline float softmax(const float* logits, int X, float* p) {
  float largest = -INFINITY, sum = 0;
  for (int e = lane_index(); e < X; e += kWarp) largest = fmaxf(largest, logits[e]);
  largest = warp_max(largest);
  for (int e = lane_index(); e < X; e += kWarp) sum += p[e] = expf(logits[e] - largest);
  sum = warp_sum(sum);
  for (int e = lane_index(); e < X; e += kWarp) p[e] /= sum;
  return largest + logf(sum);
}

__device__ inline void scores(const Router& router, const float* logits, float* p) {
  if (!router.sigmoid) {
    softmax(logits, router.X, p);
    return;
  }
  for (int e = lane_index(); e < router.X; e += kWarp) p[e] = 1 / (1 + expf(-logits[e]));
}

// p of a choice; NaN for one that is no expert.
__device__ inline float score_of(const Router& router, const float* p, int expert) {
  return unsigned(expert) < unsigned(router.X) ? p[expert] : NAN;
}

// What the weights are divided by. Other lanes' p are read: after a __syncwarp().
__device__ inline float divisor(const Router& router, const float* p, const int32_t* experts) {
  if (!router.renormalise) return 1;
  float sum = 0;
  for (int j = lane_index(); j < router.k; j += kWarp) sum += score_of(router, p, experts[j]);
  return warp_sum(sum) + (router.sigmoid ? kTinySum : 0.0f);
}

// Index of the largest of the `open` entries of `values`, the first of equals; closes it. NaN is
// never larger, but some open entry is always taken.
__device__ inline int take_largest(const float* values, int* open, int count) {
  float best = 0;
  int at = -1;
  for (int i = lane_index(); i < count; i += kWarp) {
    if (open[i] != 0 && (at < 0 || values[i] > best)) best = values[i], at = i;
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, best, offset);
    const int other_at = __shfl_xor_sync(kFullWarp, at, offset);
    if (other_at >= 0 && (at < 0 || other > best || (!(best > other) && other_at < at)))
      best = other, at = other_at;
  }
  at = __shfl_sync(kFullWarp, at, 0);  // beside NaN the lanes may disagree
  __syncwarp();                        // all have read `open`: shuffles do not order memory
  if (lane_index() == 0) open[at] = 0;
  __syncwarp();
  return at;
}

// What a token's choice is made from, in shared memory.
struct Choice {
  static constexpr int kArrays = 6;  // of X words
  float* p;
  float* choice;  // p + bias
  float* group_score;
  int *open, *group_open, *experts;

  __device__ Choice(float* memory, int X)
      : p(memory),
        choice(memory + X),
        group_score(memory + 2 * X),
        open(reinterpret_cast<int*>(memory + 3 * X)),
        group_open(reinterpret_cast<int*>(memory + 4 * X)),
        experts(reinterpret_cast<int*>(memory + 5 * X)) {}

  __device__ void open_groups(const Router& router) {
    const bool all = router.topk_group == router.groups;
    for (int e = lane_index(); e < router.X; e += kWarp) open[e] = all;
    __syncwarp();
    if (all) return;
    const int size = router.X / router.groups;
    for (int group = lane_index(); group < router.groups; group += kWarp) {
      float first = -INFINITY, second = size > 1 ? -INFINITY : 0.0f;
      for (int e = group * size; e < (group + 1) * size; ++e) {
        second = fmaxf(second, fminf(first, choice[e]));
        first = fmaxf(first, choice[e]);
      }
      group_score[group] = first + second;
      group_open[group] = 1;
    }
    __syncwarp();
    for (int i = 0; i < router.topk_group; ++i) {
      const int group = take_largest(group_score, group_open, router.groups);
      for (int e = lane_index(); e < size; e += kWarp) open[group * size + e] = 1;
    }
    __syncwarp();
  }

  __device__ void choose(const Router& router, const float* bias) {
    for (int e = lane_index(); e < router.X; e += kWarp)
      choice[e] = bias == nullptr ? p[e] : p[e] + bias[e];
    __syncwarp();
    open_groups(router);
    for (int j = 0; j < router.k; ++j) {
      const int expert = take_largest(choice, open, router.X);
      if (lane_index() == 0) experts[j] = expert;
    }
  }
};

__global__ void router_forward_kernel(Router router, int64_t tokens, RowsOf<const float> logits,
                                      const float* bias, RowsOf<int32_t> experts,
                                      RowsOf<float> weights, bool chosen) {
  const int64_t t = warp_index();
  if (t >= tokens) return;
  Choice choice(warp_memory(Choice::kArrays * router.X), router.X);
  scores(router, logits[t], choice.p);
  __syncwarp();
  if (chosen) {
    for (int j = lane_index(); j < router.k; j += kWarp) choice.experts[j] = experts[t][j];
  } else {
    choice.choose(router, bias);
  }
  __syncwarp();
  const float factor = router.scale / divisor(router, choice.p, choice.experts);
  for (int j = lane_index(); j < router.k; j += kWarp) {
    if (!chosen) experts[t][j] = choice.experts[j];
    weights[t][j] = score_of(router, choice.p, choice.experts[j]) * factor;
  }
}

// From dL/dp of a token to its dlogits.
template <bool kAdd>
__device__ void score_gradient(const Router& router, const float* p, const float* dp,
                               float* dlogits) {
  float mean = 0;
  if (!router.sigmoid) {
    for (int e = lane_index(); e < router.X; e += kWarp) mean += p[e] * dp[e];
    mean = warp_sum(mean);
  }
  for (int e = lane_index(); e < router.X; e += kWarp) {
    const float d = router.sigmoid ? dp[e] * p[e] * (1 - p[e]) : p[e] * (dp[e] - mean);
    dlogits[e] = kAdd ? dlogits[e] + d : d;
  }
}

__global__ void router_backward_kernel(Router router, int64_t tokens, RowsOf<const float> dweights,
                                       RowsOf<const float> logits, RowsOf<const int32_t> experts,
                                       RowsOf<float> dlogits) {
  const int64_t t = warp_index();
  if (t >= tokens) return;
  float* const p = warp_memory(2 * router.X);
  float* const dp = p + router.X;
  scores(router, logits[t], p);
  for (int e = lane_index(); e < router.X; e += kWarp) dp[e] = 0;
  __syncwarp();
  const float sum = divisor(router, p, experts[t]);
  float mean = 0;  // what the weights owe to their common divisor
  if (router.renormalise) {
    for (int j = lane_index(); j < router.k; j += kWarp)
      mean += dweights[t][j] * score_of(router, p, experts[t][j]) / sum;
    mean = warp_sum(mean);
  }
  for (int j = lane_index(); j < router.k; j += kWarp) {
    const int expert = experts[t][j];
    if (unsigned(expert) < unsigned(router.X))
      dp[expert] = router.scale * (dweights[t][j] - mean) / sum;
  }
  __syncwarp();
  score_gradient<false>(router, p, dp, dlogits[t]);
}

// q of the balance loss from the scores p, in place; returns what they were divided by.
__device__ inline float to_shares(const Router& router, float* p) {
  if (!router.sigmoid) return 1;
  float sum = 0;
  for (int e = lane_index(); e < router.X; e += kWarp) sum += p[e];
  sum = warp_sum(sum) + kTinySum;
  for (int e = lane_index(); e < router.X; e += kWarp) p[e] /= sum;
  return sum;
}

// A warp sums a block of a row's tokens in their order, in double.
__global__ void router_statistics_kernel(Router router, int64_t rows, RowBlocks blocks,
                                         RowsOf<const float> logits, RowsOf<const int32_t> experts,
                                         double* partial) {
  const int64_t index = warp_index();
  if (index >= rows * blocks.count) return;
  const int64_t b = index / blocks.count, block = index % blocks.count;
  const int X = router.X;
  float* const memory = warp_memory(6 * X);
  double* const counts = reinterpret_cast<double*>(memory);
  double* const mass = counts + X;
  float* const q = memory + 4 * X;
  for (int e = lane_index(); e < X; e += kWarp) counts[e] = 0, mass[e] = 0;
  double z = 0;
  for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
    const int64_t t = b * blocks.rows + i;
    const double lse = softmax(logits[t], X, q);
    z += lse * lse;
    if (router.sigmoid) {
      scores(router, logits[t], q);
      to_shares(router, q);
    }
    for (int e = lane_index(); e < X; e += kWarp) mass[e] += q[e];
    for (int j = 0; j < router.k; ++j) {
      const int expert = experts[t][j];
      if (unsigned(expert) < unsigned(X) && expert % kWarp == lane_index()) counts[expert] += 1;
    }
  }
  double* const to = partial + index * (2 * X + 1);
  for (int e = lane_index(); e < X; e += kWarp) to[e] = counts[e], to[X + e] = mass[e];
  if (lane_index() == 0) to[2 * X] = z;
}

// A block a row of the batch.
__global__ void add_statistics_kernel(int X, int64_t count, const double* partial,
                                      RowsOf<float> counts, RowsOf<float> mass, float* z) {
  const int64_t b = blockIdx.x;
  for (int i = int(threadIdx.x); i < 2 * X + 1; i += int(blockDim.x)) {
    double sum = 0;
#pragma unroll 16
    for (int64_t block = 0; block < count; ++block)
      sum += partial[(b * count + block) * (2 * X + 1) + i];
    float& to = i < X ? counts[b][i] : i < 2 * X ? mass[b][i - X] : z[b];
    to = float(sum);
  }
}

// L = sum over t, e of unit * counts_e q[t,e], plus the z part.
__global__ void router_loss_backward_kernel(Router router, int64_t rows, int64_t row_tokens,
                                            RowsOf<const float> logits, RowsOf<const float> counts,
                                            RowsOf<float> dlogits, float unit, float z_unit) {
  const int64_t t = warp_index();
  if (t >= rows) return;
  const int X = router.X;
  float* const p = warp_memory(3 * X);
  float* const dp = p + X;
  float* const share = p + 2 * X;
  const float* const chosen = counts[t / row_tokens];
  const float lse = softmax(logits[t], X, share);
  for (int e = lane_index(); e < X; e += kWarp) dlogits[t][e] += z_unit * lse * share[e];

  scores(router, logits[t], p);
  for (int e = lane_index(); e < X; e += kWarp) share[e] = p[e];
  const float sum = to_shares(router, share);
  float mean = 0;  // through the divisor of q, which softmax's own gradient already has
  if (router.sigmoid) {
    for (int e = lane_index(); e < X; e += kWarp) mean += unit * chosen[e] * share[e];
    mean = warp_sum(mean);
  }
  for (int e = lane_index(); e < X; e += kWarp) dp[e] = (unit * chosen[e] - mean) / sum;
  score_gradient<true>(router, p, dp, dlogits[t]);
}

// One warp a token, as many to a block as have room; `words` of shared memory each.
Grid warps(const char* name, int64_t tokens, int64_t words) {
  constexpr int64_t kMaxWarps = 8, kRoom = 48 << 10, kMostRoom = 227 << 10;
  const int64_t bytes = words * 4;
  SLUICE_CHECK(bytes <= kMostRoom, name, ": a token's experts take ", bytes,
               " bytes of shared memory, of ", kMostRoom, ": too many experts for one GPU");
  const int64_t count = std::clamp<int64_t>(kRoom / bytes, 1, kMaxWarps);
  return {.blocks = unsigned(ceil_div(tokens, count)),
          .threads = unsigned(count * kWarp),
          .shared_bytes = size_t(count * bytes)};
}

}  // namespace

void topk_router_forward(const Context& ctx, const TopkRouterForward& args) {
  const int64_t tokens = args.logits.rows(), X = args.logits.row_size();
  launch(ctx, "topk_router_forward", warps("topk_router_forward", tokens, Choice::kArrays * X),
         router_forward_kernel, Router(args.options, X), tokens, rows_of<float>(args.logits),
         optional_pointer<float>(args.bias), rows_of<int32_t>(args.experts),
         rows_of<float>(args.weights), args.chosen);
}

void topk_router_backward(const Context& ctx, const TopkRouterBackward& args) {
  const int64_t tokens = args.logits.rows(), X = args.logits.row_size();
  launch(ctx, "topk_router_backward", warps("topk_router_backward", tokens, 2 * X),
         router_backward_kernel, Router(args.options, X), tokens, rows_of<float>(args.dweights),
         rows_of<float>(args.logits), rows_of<int32_t>(args.experts), rows_of<float>(args.dlogits));
}

void router_statistics(const Context& ctx, const RouterStatistics& args,
                       const TensorView& partial) {
  const int64_t B = args.logits.dim(0), X = args.logits.dim(2);
  if (B == 0) return;
  const RowBlocks blocks(args.logits.dim(1), kStatisticsBlocks);
  launch(ctx, "router_statistics", warps("router_statistics", B * blocks.count, 6 * X),
         router_statistics_kernel, Router(args.options, X), B, blocks, rows_of<float>(args.logits),
         rows_of<int32_t>(args.experts), partial.as<double>());
  launch(ctx, "router_statistics", {.blocks = unsigned(B), .threads = 256}, add_statistics_kernel,
         int(X), blocks.count, partial.as<double>(), rows_of<float>(args.counts),
         rows_of<float>(args.mass), args.z.as<float>());
}

void router_loss_backward(const Context& ctx, const RouterLossBackward& args) {
  const int64_t rows = args.logits.rows(), X = args.logits.row_size();
  const double row_tokens = double(args.row_tokens);
  const double unit =
      args.balance_scale * double(X) / (row_tokens * row_tokens * double(args.options.top_k));
  launch(ctx, "router_loss_backward", warps("router_loss_backward", rows, 3 * X),
         router_loss_backward_kernel, Router(args.options, X), rows, args.logits.dim(1),
         rows_of<float>(args.logits), rows_of<float>(args.counts), rows_of<float>(args.dlogits),
         float(unit), float(2 * args.z_scale / row_tokens));
}

}  // namespace sluice::cuda
