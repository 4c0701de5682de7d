// AdamW on the GPU, one launch for all spans. Bound by bandwidth: value, m and v are read and
// written and the gradient read, 28 bytes an element, 30 with the rounded values.
//
// A block owns a tile of neighbouring elements. It finds by bisection the first span that reaches
// into the tile and walks over those that follow; nearly always one span holds the whole tile, and
// the factors are computed once for it. Elements move by fours, which is 16 bytes; what a span's
// edge cuts off a four moves alone.
#include "kernels/adamw/adamw_cuda.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWidth = Pack<float>::kWidth;
constexpr int64_t kTile = 8192;  // large against the search for its span

struct Arrays {
  float* value;
  Bf16* rounded;  // optional
  const float* grad;
  float* m;
  float* v;
};

struct Hyper {
  double beta1, beta2, eps;
};

// The numbers of one update of one span.
struct Factors {
  float beta1, rest1, beta2, rest2, eps;
  float grad_scale, step, root_unbias_v, decay;

  __device__ Factors(const Hyper& hyper, const double* scalars, const double* span)
      : beta1(float(hyper.beta1)),
        rest1(float(1 - hyper.beta1)),
        beta2(float(hyper.beta2)),
        rest2(float(1 - hyper.beta2)),
        eps(float(hyper.eps)),
        grad_scale(float(scalars[kGradScale])) {
    const double lr = scalars[kLearningRate] * span[kSpanLrScale];
    step = float(lr / scalars[kCorrection1]);
    root_unbias_v = float(1 / sqrt(scalars[kCorrection2]));
    decay = float(lr * span[kSpanWeightDecay]);
  }

  __device__ void update(float grad, float& value, float& m, float& v) const {
    const float g = grad_scale * grad;
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * (g * g);
    value -= step * m / (sqrtf(v) * root_unbias_v + eps) + decay * value;
  }
};

__device__ void update_one(const Arrays& a, const Factors& factors, int64_t i) {
  float value = a.value[i], m = a.m[i], v = a.v[i];
  factors.update(a.grad[i], value, m, v);
  a.value[i] = value;
  a.m[i] = m;
  a.v[i] = v;
  if (a.rounded != nullptr) a.rounded[i] = from_float<Bf16>(value);
}

__device__ void update_four(const Arrays& a, const Factors& factors, int64_t i) {
  const auto grad = Pack<float>::load(a.grad + i);
  auto value = Pack<float>::load(a.value + i);
  auto m = Pack<float>::load(a.m + i);
  auto v = Pack<float>::load(a.v + i);
  struct alignas(kWidth * sizeof(Bf16)) Rounded {
    Bf16 values[kWidth];
  } rounded;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    factors.update(grad.values[j], value.values[j], m.values[j], v.values[j]);
    rounded.values[j] = from_float<Bf16>(value.values[j]);
  }
  value.store(a.value + i);
  m.store(a.m + i);
  v.store(a.v + i);
  if (a.rounded != nullptr) *reinterpret_cast<Rounded*>(a.rounded + i) = rounded;
}

struct Spans {
  const double* table;  // (count, kNumSpanColumns)
  int64_t count;
  int64_t first;  // index in the arena of element 0

  __device__ const double* operator[](int64_t span) const { return table + span * kNumSpanColumns; }
  __device__ int64_t begin(int64_t span) const {
    return int64_t((*this)[span][kSpanBegin]) - first;
  }
  __device__ int64_t end(int64_t span) const { return int64_t((*this)[span][kSpanEnd]) - first; }
  // The first span that ends after element i; count if there is none.
  __device__ int64_t after(int64_t i) const {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (end(middle) > i) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Arrays a, Spans spans, const double* scalars, Hyper hyper, int64_t n) {
  if (scalars[kApply] == 0) return;
  const int64_t tile = blockIdx.x * kTile, tile_end = tile + kTile < n ? tile + kTile : n;
  for (int64_t span = spans.after(tile); span < spans.count; ++span) {
    const int64_t begin = spans.begin(span) > tile ? spans.begin(span) : tile;
    const int64_t end = spans.end(span) < tile_end ? spans.end(span) : tile_end;
    if (begin >= tile_end) return;
    const Factors factors(hyper, scalars, spans[span]);
    // Fours lie in [fours, fours_end); the rest, at most 2 (kWidth - 1), beside them.
    int64_t fours = end, fours_end = end;
    if (kAligned && end - begin >= 2 * kWidth) {
      fours = (begin + kWidth - 1) / kWidth * kWidth;
      fours_end = end / kWidth * kWidth;
    }
    for (int64_t i = fours + threadIdx.x * kWidth; i < fours_end; i += kThreads * kWidth)
      update_four(a, factors, i);
    for (int64_t i = begin + threadIdx.x; i < fours; i += kThreads) update_one(a, factors, i);
    for (int64_t i = fours_end + threadIdx.x; i < end; i += kThreads) update_one(a, factors, i);
  }
}

bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace

void adamw(const Context& ctx, const AdamW& args) {
  const Arrays arrays = {.value = args.value.as<float>(),
                         .rounded = optional_pointer<Bf16>(args.rounded),
                         .grad = args.grad.as<float>(),
                         .m = args.exp_avg.as<float>(),
                         .v = args.exp_avg_sq.as<float>()};
  bool fours = aligned(arrays.rounded, kWidth * sizeof(Bf16));
  for (const float* const array :
       {static_cast<const float*>(arrays.value), arrays.grad, static_cast<const float*>(arrays.m),
        static_cast<const float*>(arrays.v)}) {
    fours = fours && aligned(array, sizeof(Pack<float>));
  }
  const int64_t n = args.value.numel();
  launch(ctx, "adamw", {.blocks = unsigned(ceil_div(n, kTile)), .threads = kThreads},
         fours ? adamw_kernel<true> : adamw_kernel<false>, arrays,
         Spans{args.spans.as<double>(), args.spans.dim(0), args.first}, args.scalars.as<double>(),
         Hyper{args.beta1, args.beta2, args.eps}, n);
}

}  // namespace sluice::cuda
