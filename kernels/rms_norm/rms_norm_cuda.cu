// RMS norm, bound by bandwidth. At (rows, D) with a residual stream of r bytes an element and
// branches of t bytes, the floor is rows * D * (2 r + 2 t) bytes forward with the residual add, and
// rows * D * (t + 3 r [+ t for the rounded dx]) backward: every element is read or written once.
//
// Blocks take turns with the rows, so that all of them together sweep through memory in order: a
// range of rows for each block was measurably slower. A block holds a row in registers between the
// sum and the scaling. The weight, and in the backward the block's share of dweight, stay in
// registers across rows. Rows that cannot be read by 16 bytes, or wider than the registers, take
// the plain kernels, which read rows twice.
//
// R the dtype of the residual stream, T of the branches
#include "kernels/device/column_sum.cuh"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/row_tile.cuh"
#include "kernels/rms_norm/rms_norm_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kForwardWarps = 32;  // a multiprocessor

template <class R, class T>
struct ForwardRows {
  const R* x;
  const T* delta;       // optional
  const float* weight;  // optional
  R* sum;               // with delta
  T* y;
  float* rstd;  // optional
  int64_t x_stride, delta_stride, sum_stride, y_stride;
  int64_t rows;
  int D;
  float eps;
};

template <class R, class T>
__global__ void __launch_bounds__(kMaxRowThreads) rms_norm_forward_kernel(ForwardRows<R, T> a) {
  constexpr int kWidth = kPieceWidth<R, T>;
  __shared__ RowSums<1> sums;
  RowTile<float, kWidth> weight;
  if (a.weight != nullptr) {
    weight.load(a.weight, a.D);
  } else {
    weight.fill(1);
  }
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    RowTile<R, kWidth> x;
    x.load(a.x + row * a.x_stride, a.D);
    if (a.delta != nullptr) {
      RowTile<T, kWidth> delta;
      delta.load(a.delta + row * a.delta_stride, a.D);
#pragma unroll
      for (int i = 0; i < kRowValues; ++i) x.set(i, x[i] + delta[i]);
      x.store(a.sum + row * a.sum_stride, a.D);
    }
    float square[1] = {0};
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) square[0] += x[i] * x[i];
    sums(turn++, square);
    const float rstd = rsqrtf(square[0] / float(a.D) + a.eps);
    RowTile<T, kWidth> y;
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) y.set(i, weight[i] * (x[i] * rstd));
    y.store(a.y + row * a.y_stride, a.D);
    if (a.rstd != nullptr && threadIdx.x == 0) a.rstd[row] = rstd;
  }
}

// The same for any width and alignment.
template <class R, class T>
__global__ void rms_norm_forward_plain_kernel(ForwardRows<R, T> a) {
  __shared__ RowSums<1> sums;
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const R* x = a.x + row * a.x_stride;
    float square[1] = {0};
    for (int i = threadIdx.x; i < a.D; i += blockDim.x) {
      float value = to_float(x[i]);
      if (a.delta != nullptr) {
        const R sum = from_float<R>(value + to_float(a.delta[row * a.delta_stride + i]));
        a.sum[row * a.sum_stride + i] = sum;
        value = to_float(sum);
      }
      square[0] += value * value;
    }
    sums(turn++, square);
    const float rstd = rsqrtf(square[0] / float(a.D) + a.eps);
    if (a.delta != nullptr) x = a.sum + row * a.sum_stride;
    for (int i = threadIdx.x; i < a.D; i += blockDim.x) {
      const float weight = a.weight != nullptr ? a.weight[i] : 1.0f;
      a.y[row * a.y_stride + i] = from_float<T>(weight * (to_float(x[i]) * rstd));
    }
    if (a.rstd != nullptr && threadIdx.x == 0) a.rstd[row] = rstd;
  }
}

template <class R, class T>
struct BackwardRows {
  const T* dy;
  const R* sum;
  const R* dsum;        // optional
  const float* weight;  // optional
  const float* rstd;
  R* dx;
  T* dx_rounded;           // optional
  float* partial_dweight;  // (blocks.count, D), with weight
  int64_t dy_stride, sum_stride, dsum_stride, dx_stride, dx_rounded_stride;
  int64_t rows;
  int D;
};

// A row in shared memory.
template <class R, class T>
struct BackwardSlot {
  T* dy;
  R* sum;
  R* dsum;

  static constexpr int64_t kBytes = staged_bytes(sizeof(R), sizeof(T));
  __device__ BackwardSlot(char* staging, int slot) {
    const int columns = kRowValues * blockDim.x;
    char* const begin = staging + slot * columns * int(kBytes);
    sum = reinterpret_cast<R*>(begin);
    dsum = sum + columns;
    dy = reinterpret_cast<T*>(dsum + columns);
  }
};

// Shared memory: the sums' rooms, and kRowStages rows of dy, sum, dsum, which arrive while the rows
// before are worked on.
template <class R, class T>
__global__ void __launch_bounds__(kMaxRowThreads) rms_norm_backward_kernel(BackwardRows<R, T> a) {
  constexpr int kWidth = kPieceWidth<R, T>;
  using TileR = RowTile<R, kWidth>;
  using TileT = RowTile<T, kWidth>;
  extern __shared__ __align__(16) char shared[];
  auto& sums = *reinterpret_cast<RowSums<1>*>(shared);
  char* const staging = shared + sizeof(RowSums<1>);
  const auto begin_copy = [&](int64_t row, int stage) {
    const BackwardSlot<R, T> slot(staging, stage);
    if (row < a.rows) {
      TileT::copy_to(slot.dy, a.dy + row * a.dy_stride, a.D);
      TileR::copy_to(slot.sum, a.sum + row * a.sum_stride, a.D);
      if (a.dsum != nullptr) TileR::copy_to(slot.dsum, a.dsum + row * a.dsum_stride, a.D);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kRowStages; ++stage)
    begin_copy(blockIdx.x + stage * int64_t(gridDim.x), stage);
  RowTile<float, kWidth> weight, dweight;
  dweight.fill(0);
  if (a.weight != nullptr) {
    weight.load(a.weight, a.D);
  } else {
    weight.fill(1);
  }
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, ++turn) {
    const float rstd = a.rstd[row];
    const int stage = turn % kRowStages;
    const BackwardSlot<R, T> slot(staging, stage);
    wait_copies<kRowStages - 1>();
    TileT dy;
    TileR sum, dx;
    dy.load_from(slot.dy);
    sum.load_from(slot.sum);
    if (a.dsum != nullptr) {
      dx.load_from(slot.dsum);
    } else {
      dx.fill(0);
    }
    begin_copy(row + kRowStages * int64_t(gridDim.x), stage);
    float dot[1] = {0};
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) dot[0] += weight[i] * dy[i] * sum[i];
    sums(turn, dot);
    const float mean = dot[0] * rstd / float(a.D);
    TileT rounded;
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) {
      const float n = sum[i] * rstd;
      dweight.set(i, dweight[i] + dy[i] * n);
      const float gradient = rstd * (weight[i] * dy[i] - n * mean) + dx[i];
      dx.set(i, gradient);
      rounded.set(i, gradient);
    }
    dx.store(a.dx + row * a.dx_stride, a.D);
    if (a.dx_rounded != nullptr) rounded.store(a.dx_rounded + row * a.dx_rounded_stride, a.D);
  }
  if (a.partial_dweight != nullptr)
    dweight.store(a.partial_dweight + blockIdx.x * int64_t(a.D), a.D);
}

// The same for any width and alignment; the block's share of dweight is in memory.
template <class R, class T>
__global__ void rms_norm_backward_plain_kernel(BackwardRows<R, T> a) {
  __shared__ RowSums<1> sums;
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, ++turn) {
    const T* const dy = a.dy + row * a.dy_stride;
    const R* const sum = a.sum + row * a.sum_stride;
    const float rstd = a.rstd[row];
    float dot[1] = {0};
    for (int i = threadIdx.x; i < a.D; i += blockDim.x)
      dot[0] += (a.weight != nullptr ? a.weight[i] : 1.0f) * to_float(dy[i]) * to_float(sum[i]);
    sums(turn, dot);
    const float mean = dot[0] * rstd / float(a.D);
    for (int i = threadIdx.x; i < a.D; i += blockDim.x) {
      const float n = to_float(sum[i]) * rstd, gradient_of_y = to_float(dy[i]);
      const float g = (a.weight != nullptr ? a.weight[i] : 1.0f) * gradient_of_y;
      float gradient = rstd * (g - n * mean);
      if (a.dsum != nullptr) gradient += to_float(a.dsum[row * a.dsum_stride + i]);
      a.dx[row * a.dx_stride + i] = from_float<R>(gradient);
      if (a.dx_rounded != nullptr)
        a.dx_rounded[row * a.dx_rounded_stride + i] = from_float<T>(gradient);
      if (a.partial_dweight == nullptr) continue;
      float& partial = a.partial_dweight[blockIdx.x * int64_t(a.D) + i];
      partial = (turn == 0 ? 0.0f : partial) + gradient_of_y * n;
    }
  }
}

// The residual stream's dtype and the branches'.
template <class Body>
void dispatch_rows(DType residual, DType dtype, Body&& body) {
  if (residual != dtype) return body.template operator()<float, Bf16>();
  dispatch_float(dtype, [&]<class T>() { body.template operator()<T, T>(); });
}

}  // namespace

void rms_norm_forward(const Context& ctx, const RmsNormForward& args) {
  const int64_t D = args.x.row_size();
  dispatch_rows(args.x.dtype, args.y.dtype, [&]<class R, class T>() {
    const ForwardRows<R, T> rows = {.x = pointer<R>(args.x),
                                    .delta = optional_pointer<T>(args.delta),
                                    .weight = optional_pointer<float>(args.weight),
                                    .sum = optional_pointer<R>(args.sum),
                                    .y = pointer<T>(args.y),
                                    .rstd = optional_pointer<float>(args.rstd),
                                    .x_stride = args.x.row_stride,
                                    .delta_stride = args.delta.row_stride,
                                    .sum_stride = args.sum.row_stride,
                                    .y_stride = args.y.row_stride,
                                    .rows = args.x.rows(),
                                    .D = int(D),
                                    .eps = float(args.eps)};
    const bool tiled =
        holds_rows(D, std::max(sizeof(R), sizeof(T)), 0) &&
        in_pieces<kPieceWidth<R, T>>(args.x, args.delta, args.weight, args.sum, args.y);
    const int64_t blocks = std::min(rows.rows, row_blocks(D, kForwardWarps));
    launch(ctx, "rms_norm_forward",
           {.blocks = unsigned(blocks), .threads = unsigned(row_threads(D))},
           tiled ? rms_norm_forward_kernel<R, T> : rms_norm_forward_plain_kernel<R, T>, rows);
  });
}

void rms_norm_backward(const Context& ctx, const RmsNormBackward& args,
                       TensorView partial_dweight) {
  const int64_t D = args.dy.row_size();
  const RowBlocks blocks = norm_row_blocks(args.dy.rows(), D);
  if (blocks.rows == 0) return;
  dispatch_rows(args.sum.dtype, args.dy.dtype, [&]<class R, class T>() {
    const BackwardRows<R, T> rows = {
        .dy = pointer<T>(args.dy),
        .sum = pointer<R>(args.sum),
        .dsum = optional_pointer<R>(args.dsum),
        .weight = optional_pointer<float>(args.weight),
        .rstd = args.rstd.as<float>(),
        .dx = pointer<R>(args.dx),
        .dx_rounded = optional_pointer<T>(args.dx_rounded),
        .partial_dweight = args.weight ? partial_dweight.as<float>() : nullptr,
        .dy_stride = args.dy.row_stride,
        .sum_stride = args.sum.row_stride,
        .dsum_stride = args.dsum.row_stride,
        .dx_stride = args.dx.row_stride,
        .dx_rounded_stride = args.dx_rounded.row_stride,
        .rows = blocks.rows,
        .D = int(D)};
    const bool tiled = rms_norm_holds(args.sum.dtype, args.dy.dtype, D) &&
                       in_pieces<kPieceWidth<R, T>>(args.dy, args.sum, args.dsum, args.weight,
                                                    args.dx, args.dx_rounded);
    launch(ctx, "rms_norm_backward",
           {.blocks = unsigned(blocks.count),
            .threads = unsigned(row_threads(D)),
            .shared_bytes =
                tiled ? sizeof(RowSums<1>) + row_staging(D, BackwardSlot<R, T>::kBytes) : 0},
           tiled ? rms_norm_backward_kernel<R, T> : rms_norm_backward_plain_kernel<R, T>, rows);
  });
  if (args.dweight) {
    add_column_sums(ctx, "rms_norm_backward", partial_dweight.as<float>(), blocks.count, D,
                    args.dweight.as<float>());
  }
}

}  // namespace sluice::cuda
