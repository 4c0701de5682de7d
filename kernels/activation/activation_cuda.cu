// Activations, bound by bandwidth: every element is read once and written once, 16 bytes at a time
// where rows allow it. Floor of swiglu in bf16: 6 bytes an element forward, 10 backward. A thread
// owns a pack of columns and walks down the rows; tensors that are all packed are one long row.
#include "kernels/activation/activation_cuda.h"
#include "kernels/core/packs.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/swiglu.cuh"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridRows = 65535;

// The normal distribution's function and density. erfcf keeps the left tail's digits.
__device__ float normal_cdf(float x) { return 0.5f * erfcf(-0.70710678f * x); }
__device__ float normal_pdf(float x) { return 0.39894228f * __expf(-0.5f * x * x); }
// NaN stays NaN.
__device__ float relu(float x) { return x < 0 ? 0.0f : x; }

template <Activation kKind>
__device__ float activate(float x, float up) {
  if constexpr (kKind == Activation::swiglu) return swiglu(x, up);
  if constexpr (kKind == Activation::relu2) return relu(x) * relu(x);
  return x * normal_cdf(x);
}

// Of x and, where there is one, of up.
template <Activation kKind>
__device__ SwigluGradients gradients(float dy, float x, float up) {
  if constexpr (kKind == Activation::swiglu) {
    return swiglu_gradients(dy, x, up);
  }
  if constexpr (kKind == Activation::relu2) return {dy * 2 * relu(x), 0};
  return {dy * (normal_cdf(x) + x * normal_pdf(x)), 0};
}

template <class T>
struct ForwardRows {
  const T* x;
  const T* up;  // swiglu
  T* y;
  int64_t x_stride, up_stride, y_stride;
  int64_t rows, columns;
};

template <class T, int kWidth, Activation kKind>
__global__ void __launch_bounds__(kThreads) activation_forward_kernel(ForwardRows<T> a) {
  using Pieces = Elements<T, kWidth>;
  const int64_t column = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) * kWidth;
  if (column >= a.columns) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const auto x = Pieces::load(a.x + row * a.x_stride + column);
    Pieces up = {}, y;
    if constexpr (kKind == Activation::swiglu) up = Pieces::load(a.up + row * a.up_stride + column);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) y.set(i, activate<kKind>(x[i], up[i]));
    y.store(a.y + row * a.y_stride + column);
  }
}

template <class T>
struct BackwardRows {
  const T* dy;
  const T* x;
  const T* up;  // swiglu
  T* dx;
  T* dup;  // swiglu
  int64_t dy_stride, x_stride, up_stride, dx_stride, dup_stride;
  int64_t rows, columns;
};

template <class T, int kWidth, Activation kKind>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(BackwardRows<T> a) {
  using Pieces = Elements<T, kWidth>;
  const int64_t column = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) * kWidth;
  if (column >= a.columns) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const auto dy = Pieces::load(a.dy + row * a.dy_stride + column);
    const auto x = Pieces::load(a.x + row * a.x_stride + column);
    Pieces up = {}, dx, dup;
    if constexpr (kKind == Activation::swiglu) up = Pieces::load(a.up + row * a.up_stride + column);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const SwigluGradients of = gradients<kKind>(dy[i], x[i], up[i]);
      dx.set(i, of.gate);
      dup.set(i, of.up);
    }
    dx.store(a.dx + row * a.dx_stride + column);
    if constexpr (kKind == Activation::swiglu) dup.store(a.dup + row * a.dup_stride + column);
  }
}

template <class... View>
bool all_packed(const View&... view) {
  return ((!view || view.packed()) && ...);
}

// Whether (rows, columns) of these tensors can be read 16 bytes at a time.
template <class... View>
bool in_packs(int64_t rows, int64_t columns, const View&... view) {
  const auto one = [&](const ConstTensorView& side) {
    return !side || (at_pack(side.data) && whole_packs(columns, side.dtype) &&
                     (rows <= 1 || whole_packs(side.row_stride, side.dtype)));
  };
  return (one(view) && ...);
}

// body<kWidth, kKind>(), a kernel for this call.
template <class T, class Body>
auto choose(Activation kind, bool packs, Body&& body) {
  const auto of_kind = [&]<Activation kKind>() {
    return packs ? body.template operator()<Pack<T>::kWidth, kKind>()
                 : body.template operator()<1, kKind>();
  };
  switch (kind) {
    case Activation::swiglu:
      return of_kind.template operator()<Activation::swiglu>();
    case Activation::relu2:
      return of_kind.template operator()<Activation::relu2>();
    case Activation::gelu:
      return of_kind.template operator()<Activation::gelu>();
  }
  throw Error(ExitCode::bug, "no such activation");
}

Grid grid_of(int64_t rows, int64_t columns, int64_t width) {
  const int64_t pieces = ceil_div(columns, width);
  const int64_t threads = std::min<int64_t>(kThreads, ceil_div(pieces, 32) * 32);
  return {.blocks = {unsigned(ceil_div(pieces, threads)), unsigned(std::min(rows, kMaxGridRows))},
          .threads = unsigned(threads)};
}

}  // namespace

void activation_forward(const Context& ctx, const ActivationForward& args) {
  if (args.x.numel() == 0) return;
  const bool packed = all_packed(args.x, args.up, args.y);
  const int64_t rows = packed ? 1 : args.x.rows();
  const int64_t columns = packed ? args.x.numel() : args.x.row_size();
  const bool packs = in_packs(rows, columns, args.x, args.up, args.y);
  dispatch_float(args.x.dtype, [&]<class T>() {
    const ForwardRows<T> all = {.x = pointer<T>(args.x),
                                .up = optional_pointer<T>(args.up),
                                .y = pointer<T>(args.y),
                                .x_stride = args.x.row_stride,
                                .up_stride = args.up.row_stride,
                                .y_stride = args.y.row_stride,
                                .rows = rows,
                                .columns = columns};
    const auto kernel = choose<T>(args.kind, packs, [&]<int kWidth, Activation kKind>() {
      return activation_forward_kernel<T, kWidth, kKind>;
    });
    launch(ctx, "activation_forward", grid_of(rows, columns, packs ? Pack<T>::kWidth : 1), kernel,
           all);
  });
}

void activation_backward(const Context& ctx, const ActivationBackward& args) {
  if (args.x.numel() == 0) return;
  const bool packed = all_packed(args.dy, args.x, args.up, args.dx, args.dup);
  const int64_t rows = packed ? 1 : args.x.rows();
  const int64_t columns = packed ? args.x.numel() : args.x.row_size();
  const bool packs = in_packs(rows, columns, args.dy, args.x, args.up, args.dx, args.dup);
  dispatch_float(args.x.dtype, [&]<class T>() {
    const BackwardRows<T> all = {.dy = pointer<T>(args.dy),
                                 .x = pointer<T>(args.x),
                                 .up = optional_pointer<T>(args.up),
                                 .dx = pointer<T>(args.dx),
                                 .dup = optional_pointer<T>(args.dup),
                                 .dy_stride = args.dy.row_stride,
                                 .x_stride = args.x.row_stride,
                                 .up_stride = args.up.row_stride,
                                 .dx_stride = args.dx.row_stride,
                                 .dup_stride = args.dup.row_stride,
                                 .rows = rows,
                                 .columns = columns};
    const auto kernel = choose<T>(args.kind, packs, [&]<int kWidth, Activation kKind>() {
      return activation_backward_kernel<T, kWidth, kKind>;
    });
    launch(ctx, "activation_backward", grid_of(rows, columns, packs ? Pack<T>::kWidth : 1), kernel,
           all);
  });
}

}  // namespace sluice::cuda
