// A team of lanes a token, everything of the token in shared memory: lane e % kLanes owns expert e.
// The operator moves 4 (X + 2 k) bytes a token, a thousandth of what the experts do, so it is
// written for any X; what it costs is instructions, and few experts make do with few lanes.
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

// Neighbouring lanes of a warp, a power of two of them. All teams of a warp come along to the end.
template <int kLanes>
struct Team {
  static constexpr int kCount = kLanes;

  __device__ static int lane() { return int(threadIdx.x) % kLanes; }
  __device__ static int64_t index() {
    return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  }
  // 4-byte words between the memories of two teams that need so many: they begin in other banks.
  __host__ __device__ static constexpr int64_t stride(int64_t words) {
    return kLanes == kWarp ? words : (words + kWarp - 1) / kWarp * kWarp + kLanes;
  }
  // This team's part of the block's dynamic shared memory.
  __device__ static float* memory(int words) {
    extern __shared__ double shared[];
    return reinterpret_cast<float*>(shared) + threadIdx.x / kLanes * stride(words);
  }
  // On every lane.
  __device__ static float sum(float value) { return warp_sum<kLanes>(value); }
  __device__ static float max(float value) { return warp_max<kLanes>(value); }
};

// p = softmax(logits); returns their logsumexp.
template <class Lanes>
__device__ float softmax(const float* logits, int X, float* p) {
  float largest = -INFINITY, sum = 0;
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) largest = fmaxf(largest, logits[e]);
  largest = Lanes::max(largest);
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) sum += p[e] = expf(logits[e] - largest);
  sum = Lanes::sum(sum);
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) p[e] /= sum;
  return largest + logf(sum);
}

template <class Lanes>
__device__ void scores(const Router& router, const float* logits, float* p) {
  if (!router.sigmoid) {
    softmax<Lanes>(logits, router.X, p);
    return;
  }
  for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount) p[e] = 1 / (1 + expf(-logits[e]));
}

// p of a choice; NaN for one that is no expert.
__device__ inline float score_of(const Router& router, const float* p, int expert) {
  return unsigned(expert) < unsigned(router.X) ? p[expert] : NAN;
}

// What the weights are divided by. Other lanes' p are read: after a __syncwarp().
template <class Lanes>
__device__ float divisor(const Router& router, const float* p, const int32_t* experts) {
  if (!router.renormalise) return 1;
  float sum = 0;
  for (int j = Lanes::lane(); j < router.k; j += Lanes::kCount)
    sum += score_of(router, p, experts[j]);
  return Lanes::sum(sum) + (router.sigmoid ? kTinySum : 0.0f);
}

// Index of the largest of the `open` entries of `values`, the first of equals; closes it. NaN is
// never larger, but some open entry is always taken.
template <class Lanes>
__device__ int take_largest(const float* values, int* open, int count) {
  float best = 0;
  int at = -1;
  for (int i = Lanes::lane(); i < count; i += Lanes::kCount) {
    if (open[i] != 0 && (at < 0 || values[i] > best)) best = values[i], at = i;
  }
#pragma unroll
  for (int offset = Lanes::kCount / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, best, offset);
    const int other_at = __shfl_xor_sync(kFullWarp, at, offset);
    if (other_at >= 0 && (at < 0 || other > best || (!(best > other) && other_at < at)))
      best = other, at = other_at;
  }
  at = __shfl_sync(kFullWarp, at, 0, Lanes::kCount);  // beside NaN the lanes may disagree
  __syncwarp();  // all have read `open`: shuffles do not order memory
  if (Lanes::lane() == 0) open[at] = 0;
  __syncwarp();
  return at;
}

// What a token's choice is made from, in shared memory.
constexpr int kChoiceArrays = 6;  // of X words
template <class Lanes>
struct Choice {
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
    for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount) open[e] = all;
    __syncwarp();
    if (all) return;
    const int size = router.X / router.groups;
    for (int group = Lanes::lane(); group < router.groups; group += Lanes::kCount) {
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
      const int group = take_largest<Lanes>(group_score, group_open, router.groups);
      for (int e = Lanes::lane(); e < size; e += Lanes::kCount) open[group * size + e] = 1;
    }
    __syncwarp();
  }

  __device__ void choose(const Router& router, const float* bias) {
    for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount)
      choice[e] = bias == nullptr ? p[e] : p[e] + bias[e];
    __syncwarp();
    open_groups(router);
    for (int j = 0; j < router.k; ++j) {
      const int expert = take_largest<Lanes>(choice, open, router.X);
      if (Lanes::lane() == 0) experts[j] = expert;
    }
  }
};

template <class Lanes>
__global__ void router_forward_kernel(Router router, int64_t tokens, RowsOf<const float> logits,
                                      const float* bias, RowsOf<int32_t> experts,
                                      RowsOf<float> weights, bool chosen) {
  const bool mine = Lanes::index() < tokens;
  const int64_t t = mine ? Lanes::index() : 0;
  Choice<Lanes> choice(Lanes::memory(kChoiceArrays * router.X), router.X);
  scores<Lanes>(router, logits[t], choice.p);
  __syncwarp();
  if (chosen) {
    for (int j = Lanes::lane(); j < router.k; j += Lanes::kCount) choice.experts[j] = experts[t][j];
  } else {
    choice.choose(router, bias);
  }
  __syncwarp();
  const float factor = router.scale / divisor<Lanes>(router, choice.p, choice.experts);
  for (int j = Lanes::lane(); mine && j < router.k; j += Lanes::kCount) {
    if (!chosen) experts[t][j] = choice.experts[j];
    weights[t][j] = score_of(router, choice.p, choice.experts[j]) * factor;
  }
}

// From dL/dp of a token to its dlogits.
template <class Lanes, bool kAdd>
__device__ void score_gradient(const Router& router, const float* p, const float* dp, bool mine,
                               float* dlogits) {
  float mean = 0;
  if (!router.sigmoid) {
    for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount) mean += p[e] * dp[e];
    mean = Lanes::sum(mean);
  }
  for (int e = Lanes::lane(); mine && e < router.X; e += Lanes::kCount) {
    const float d = router.sigmoid ? dp[e] * p[e] * (1 - p[e]) : p[e] * (dp[e] - mean);
    dlogits[e] = kAdd ? dlogits[e] + d : d;
  }
}

template <class Lanes>
__global__ void router_backward_kernel(Router router, int64_t tokens, RowsOf<const float> dweights,
                                       RowsOf<const float> logits, RowsOf<const int32_t> experts,
                                       RowsOf<float> dlogits) {
  const bool mine = Lanes::index() < tokens;
  const int64_t t = mine ? Lanes::index() : 0;
  float* const p = Lanes::memory(2 * router.X);
  float* const dp = p + router.X;
  scores<Lanes>(router, logits[t], p);
  for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount) dp[e] = 0;
  __syncwarp();
  const float sum = divisor<Lanes>(router, p, experts[t]);
  float mean = 0;  // what the weights owe to their common divisor
  if (router.renormalise) {
    for (int j = Lanes::lane(); j < router.k; j += Lanes::kCount)
      mean += dweights[t][j] * score_of(router, p, experts[t][j]) / sum;
    mean = Lanes::sum(mean);
  }
  for (int j = Lanes::lane(); j < router.k; j += Lanes::kCount) {
    const int expert = experts[t][j];
    if (unsigned(expert) < unsigned(router.X))
      dp[expert] = router.scale * (dweights[t][j] - mean) / sum;
  }
  __syncwarp();
  score_gradient<Lanes, false>(router, p, dp, mine, dlogits[t]);
}

// q of the balance loss from the scores p, in place; returns what they were divided by.
template <class Lanes>
__device__ float to_shares(const Router& router, float* p) {
  if (!router.sigmoid) return 1;
  float sum = 0;
  for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount) sum += p[e];
  sum = Lanes::sum(sum) + kTinySum;
  for (int e = Lanes::lane(); e < router.X; e += Lanes::kCount) p[e] /= sum;
  return sum;
}

// A team sums a block of a row's tokens in their order, in double.
template <class Lanes>
__global__ void router_statistics_kernel(Router router, int64_t rows, RowBlocks blocks,
                                         RowsOf<const float> logits, RowsOf<const int32_t> experts,
                                         double* partial) {
  const bool mine = Lanes::index() < rows * blocks.count;
  const int64_t index = mine ? Lanes::index() : 0;
  const int64_t b = index / blocks.count, block = index % blocks.count;
  const int X = router.X;
  float* const memory = Lanes::memory(6 * X);
  double* const counts = reinterpret_cast<double*>(memory);
  double* const mass = counts + X;
  float* const q = memory + 4 * X;
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) counts[e] = 0, mass[e] = 0;
  double z = 0;
  // Blocks differ by one token at most: all go through as many.
  const int64_t most = (blocks.rows + blocks.count - 1) / blocks.count;
  for (int64_t i = blocks.begin(block); i < blocks.begin(block) + most; ++i) {
    const bool there = i < blocks.end(block);
    const int64_t t = b * blocks.rows + (there ? i : 0);
    const double lse = softmax<Lanes>(logits[t], X, q);
    if (router.sigmoid) {
      scores<Lanes>(router, logits[t], q);
      to_shares<Lanes>(router, q);
    }
    if (!there) continue;
    z += lse * lse;
    for (int e = Lanes::lane(); e < X; e += Lanes::kCount) mass[e] += q[e];
    for (int j = 0; j < router.k; ++j) {
      const int expert = experts[t][j];
      if (unsigned(expert) < unsigned(X) && expert % Lanes::kCount == Lanes::lane())
        counts[expert] += 1;
    }
  }
  if (!mine) return;
  double* const to = partial + index * (2 * X + 1);
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) to[e] = counts[e], to[X + e] = mass[e];
  if (Lanes::lane() == 0) to[2 * X] = z;
}

// A block has kAddColumns sums of a row of the batch, and as many threads for each as it can: they
// take turns with the blocks of tokens.
constexpr int kAddColumns = 8, kAddTurns = 32;

__global__ void __launch_bounds__(kAddColumns* kAddTurns)
    add_statistics_kernel(int X, int64_t count, const double* partial, RowsOf<float> counts,
                          RowsOf<float> mass, float* z) {
  __shared__ double of_turn[kAddTurns][kAddColumns];
  const int column = int(threadIdx.x) % kAddColumns, turn = int(threadIdx.x) / kAddColumns;
  const int64_t b = blockIdx.x;
  const int sums = 2 * X + 1, i = int(blockIdx.y) * kAddColumns + column;
  double sum = 0;
  if (i < sums) {
#pragma unroll 16
    for (int64_t block = turn; block < count; block += kAddTurns)
      sum += partial[(b * count + block) * sums + i];
  }
  of_turn[turn][column] = sum;
  __syncthreads();
  if (turn != 0 || i >= sums) return;
  sum = 0;
#pragma unroll
  for (int other = 0; other < kAddTurns; ++other) sum += of_turn[other][column];
  float& to = i < X ? counts[b][i] : i < 2 * X ? mass[b][i - X] : z[b];
  to = float(sum);
}

// L = sum over t, e of unit * counts_e q[t,e], plus the z part.
template <class Lanes>
__global__ void router_loss_backward_kernel(Router router, int64_t rows, int64_t row_tokens,
                                            RowsOf<const float> logits, RowsOf<const float> counts,
                                            RowsOf<float> dlogits, float unit, float z_unit) {
  const bool mine = Lanes::index() < rows;
  const int64_t t = mine ? Lanes::index() : 0;
  const int X = router.X;
  float* const p = Lanes::memory(3 * X);
  float* const dp = p + X;
  float* const share = p + 2 * X;
  const float* const chosen = counts[t / row_tokens];
  const float lse = softmax<Lanes>(logits[t], X, share);
  for (int e = Lanes::lane(); mine && e < X; e += Lanes::kCount)
    dlogits[t][e] += z_unit * lse * share[e];

  scores<Lanes>(router, logits[t], p);
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) share[e] = p[e];
  const float sum = to_shares<Lanes>(router, share);
  float mean = 0;  // through the divisor of q, which softmax's own gradient already has
  if (router.sigmoid) {
    for (int e = Lanes::lane(); e < X; e += Lanes::kCount) mean += unit * chosen[e] * share[e];
    mean = Lanes::sum(mean);
  }
  for (int e = Lanes::lane(); e < X; e += Lanes::kCount) dp[e] = (unit * chosen[e] - mean) / sum;
  score_gradient<Lanes, true>(router, p, dp, mine, dlogits[t]);
}

// body<Lanes>(): a lane has some eight experts, or as few as there are lanes for.
template <class Body>
void with_team(int64_t X, const Body& body) {
  if (X <= kWarp) return body.template operator()<Team<4>>();
  body.template operator()<Team<kWarp>>();
}

// One team a token, as many to a block as have room; `words` of shared memory each.
template <class Lanes>
Grid teams(const char* name, int64_t tokens, int64_t words) {
  constexpr int64_t kMaxWarps = 8, kRoom = 48 << 10, kMostRoom = 227 << 10;
  constexpr int64_t kTeams = kWarp / Lanes::kCount;
  const int64_t bytes = kTeams * Lanes::stride(words) * 4;  // of a warp
  SLUICE_CHECK(bytes <= kMostRoom, name, ": a token's experts take ", bytes,
               " bytes of shared memory, of ", kMostRoom, ": too many experts for one GPU");
  const int64_t count = std::clamp<int64_t>(kRoom / bytes, 1, kMaxWarps);
  return {.blocks = unsigned(ceil_div(tokens, count * kTeams)),
          .threads = unsigned(count * kWarp),
          .shared_bytes = size_t(count * bytes)};
}

}  // namespace

void topk_router_forward(const Context& ctx, const TopkRouterForward& args) {
  const int64_t tokens = args.logits.rows(), X = args.logits.row_size();
  constexpr const char* kName = "topk_router_forward";
  with_team(X, [&]<class Lanes>() {
    launch(ctx, kName, teams<Lanes>(kName, tokens, kChoiceArrays * X), router_forward_kernel<Lanes>,
           Router(args.options, X), tokens, rows_of<float>(args.logits),
           optional_pointer<float>(args.bias), rows_of<int32_t>(args.experts),
           rows_of<float>(args.weights), args.chosen);
  });
}

void topk_router_backward(const Context& ctx, const TopkRouterBackward& args) {
  const int64_t tokens = args.logits.rows(), X = args.logits.row_size();
  constexpr const char* kName = "topk_router_backward";
  with_team(X, [&]<class Lanes>() {
    launch(ctx, kName, teams<Lanes>(kName, tokens, 2 * X), router_backward_kernel<Lanes>,
           Router(args.options, X), tokens, rows_of<float>(args.dweights),
           rows_of<float>(args.logits), rows_of<int32_t>(args.experts),
           rows_of<float>(args.dlogits));
  });
}

void router_statistics(const Context& ctx, const RouterStatistics& args,
                       const TensorView& partial) {
  const int64_t B = args.logits.dim(0), X = args.logits.dim(2);
  if (B == 0) return;
  const RowBlocks blocks = statistics_blocks(B, args.logits.dim(1));
  constexpr const char* kName = "router_statistics";
  with_team(X, [&]<class Lanes>() {
    launch(ctx, kName, teams<Lanes>(kName, B * blocks.count, 6 * X),
           router_statistics_kernel<Lanes>, Router(args.options, X), B, blocks,
           rows_of<float>(args.logits), rows_of<int32_t>(args.experts), partial.as<double>());
  });
  launch(ctx, kName,
         {.blocks = {unsigned(B), unsigned(ceil_div(2 * X + 1, kAddColumns))},
          .threads = kAddColumns * kAddTurns},
         add_statistics_kernel, int(X), blocks.count, partial.as<double>(),
         rows_of<float>(args.counts), rows_of<float>(args.mass), args.z.as<float>());
}

void router_loss_backward(const Context& ctx, const RouterLossBackward& args) {
  const int64_t rows = args.logits.rows(), X = args.logits.row_size();
  const double row_tokens = double(args.row_tokens);
  const double unit =
      args.balance_scale * double(X) / (row_tokens * row_tokens * double(args.options.top_k));
  constexpr const char* kName = "router_loss_backward";
  with_team(X, [&]<class Lanes>() {
    launch(ctx, kName, teams<Lanes>(kName, rows, 3 * X), router_loss_backward_kernel<Lanes>,
           Router(args.options, X), rows, args.logits.dim(1), rows_of<float>(args.logits),
           rows_of<float>(args.counts), rows_of<float>(args.dlogits), float(unit),
           float(2 * args.z_scale / row_tokens));
  });
}

}  // namespace sluice::cuda
