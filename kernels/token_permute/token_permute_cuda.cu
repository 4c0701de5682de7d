// Rows between tokens and experts. All of these move bytes and little else: a warp a row, 16 bytes
// a lane where rows allow it, each row read once and written once. Floors at k = 2, D = 2048, 16384
// tokens, bf16: 0.20 GB, 0.067 ms, but for unpermute's backward, which reads dy and rows and writes
// drows: 0.34 GB.
#include "kernels/core/packs.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/token_permute/token_permute_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kWarps = 8;  // of a block

// One element at a time, for rows that are not made of aligned 16 bytes.
template <class T>
struct One {
  static constexpr int kWidth = 1;
  T values[1];

  __device__ static One load(const T* from) { return {{*from}}; }
  __device__ void store(T* to) const { *to = values[0]; }
};

template <class T>
struct Matrix {
  T* data;
  int64_t stride;
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T, class Void>
Matrix<std::conditional_t<std::is_const_v<Void>, const T, T>> matrix_of(
    const BasicTensorView<Void>& view) {
  return {pointer<T>(view), view.row_stride};
}

// body<T, Access>(): Pack<T>, or One<T> unless all tensors are made of packs.
template <class Body>
void dispatch_access(DType dtype, std::initializer_list<ConstTensorView> tensors, Body&& body) {
  const bool packs = std::all_of(tensors.begin(), tensors.end(), in_packs);
  dispatch_float(dtype, [&]<class T>() {
    if (packs) return body.template operator()<T, Pack<T>>();
    body.template operator()<T, One<T>>();
  });
}

__device__ inline int64_t warp_index() {
  return int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}
// body(first column) for every piece of a row that is this lane's.
template <class Access, class Body>
__device__ void for_each_piece(int64_t columns, const Body& body) {
#pragma unroll 4
  for (int64_t i = threadIdx.x % kWarp * Access::kWidth; i < columns; i += kWarp * Access::kWidth)
    body(i);
}

// A warp an entry: those of one token are neighbours, so that its row comes from memory once.
template <class T, class Access>
__global__ void __launch_bounds__(kWarps* kWarp)
    scatter_kernel(Matrix<const T> x, Matrix<const int32_t> slot, Matrix<T> rows, int64_t entries,
                   int k, int64_t columns) {
  const int64_t entry = warp_index();
  if (entry >= entries) return;
  const int64_t t = entry / k;
  const int32_t at = slot[t][entry % k];
  if (at < 0) return;
  const T* const from = x[t];
  T* const to = rows[at];
  for_each_piece<Access>(columns, [&](int64_t i) { Access::load(from + i).store(to + i); });
}

// y[t] = sum_j weights[t,j] * rows[slot[t,j]], in order; null weights are 1.
template <class T, class Access>
__global__ void __launch_bounds__(kWarps* kWarp)
    combine_kernel(Matrix<const T> rows, Matrix<const int32_t> slot, Matrix<const float> weights,
                   Matrix<T> y, int64_t tokens, int k, int64_t columns) {
  const int64_t t = warp_index();
  if (t >= tokens) return;
  for_each_piece<Access>(columns, [&](int64_t i) {
    float sum[Access::kWidth] = {};
    for (int j = 0; j < k; ++j) {
      const int32_t from = slot[t][j];
      if (from < 0) continue;
      const float weight = weights.data == nullptr ? 1.0f : weights[t][j];
      const Access row = Access::load(rows[from] + i);
#pragma unroll
      for (int c = 0; c < Access::kWidth; ++c) sum[c] += weight * to_float(row.values[c]);
    }
    Access result;
#pragma unroll
    for (int c = 0; c < Access::kWidth; ++c) result.values[c] = from_float<T>(sum[c]);
    result.store(y[t] + i);
  });
}

// A warp an entry. Each lane reads a piece of the row before it writes it: drows may be rows.
template <class T, class Access>
__global__ void __launch_bounds__(kWarps* kWarp)
    unpermute_backward_kernel(Matrix<const T> dy, Matrix<const T> rows, Matrix<const int32_t> slot,
                              Matrix<const float> weights, Matrix<T> drows, Matrix<float> dweights,
                              int64_t entries, int k, int64_t columns) {
  const int64_t entry = warp_index();
  if (entry >= entries) return;
  const int64_t t = entry / k, j = entry % k;
  const int32_t at = slot[t][j];
  float dot = 0;
  if (at >= 0) {
    const float weight = weights[t][j];
    for_each_piece<Access>(columns, [&](int64_t i) {
      const Access gradient = Access::load(dy[t] + i), row = Access::load(rows[at] + i);
      Access result;
#pragma unroll
      for (int c = 0; c < Access::kWidth; ++c) {
        const float d = to_float(gradient.values[c]);
        dot += d * to_float(row.values[c]);
        result.values[c] = from_float<T>(weight * d);
      }
      result.store(drows[at] + i);
    });
    dot = warp_sum(dot);
  }
  if (threadIdx.x % kWarp == 0) dweights[t][j] = dot;
}

Grid warps(int64_t count) {
  return {.blocks = unsigned(ceil_div(count, kWarps)), .threads = kWarps * kWarp};
}

}  // namespace

void token_permute_forward(const Context& ctx, const TokenPermuteForward& args) {
  dispatch_access(args.x.dtype, {args.x, args.rows}, [&]<class T, class Access>() {
    launch(ctx, "token_permute_forward", warps(args.slot.numel()), scatter_kernel<T, Access>,
           matrix_of<T>(args.x), matrix_of<int32_t>(args.slot), matrix_of<T>(args.rows),
           args.slot.numel(), int(args.slot.row_size()), args.x.row_size());
  });
}

void token_permute_backward(const Context& ctx, const TokenPermuteBackward& args) {
  dispatch_access(args.dx.dtype, {args.drows, args.dx}, [&]<class T, class Access>() {
    launch(ctx, "token_permute_backward", warps(args.dx.rows()), combine_kernel<T, Access>,
           matrix_of<T>(args.drows), matrix_of<int32_t>(args.slot), Matrix<const float>{},
           matrix_of<T>(args.dx), args.dx.rows(), int(args.slot.row_size()), args.dx.row_size());
  });
}

void token_unpermute_forward(const Context& ctx, const TokenUnpermuteForward& args) {
  dispatch_access(args.y.dtype, {args.rows, args.y}, [&]<class T, class Access>() {
    launch(ctx, "token_unpermute_forward", warps(args.y.rows()), combine_kernel<T, Access>,
           matrix_of<T>(args.rows), matrix_of<int32_t>(args.slot), matrix_of<float>(args.weights),
           matrix_of<T>(args.y), args.y.rows(), int(args.slot.row_size()), args.y.row_size());
  });
}

void token_unpermute_backward(const Context& ctx, const TokenUnpermuteBackward& args) {
  const int64_t entries = args.slot.numel();
  dispatch_access(args.dy.dtype, {args.dy, args.rows, args.drows}, [&]<class T, class Access>() {
    launch(ctx, "token_unpermute_backward", warps(entries), unpermute_backward_kernel<T, Access>,
           matrix_of<T>(args.dy), matrix_of<T>(args.rows), matrix_of<int32_t>(args.slot),
           matrix_of<float>(args.weights), matrix_of<T>(args.drows),
           matrix_of<float>(args.dweights), entries, int(args.slot.row_size()), args.dy.row_size());
  });
}

}  // namespace sluice::cuda
