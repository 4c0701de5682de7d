// Gated RMS norm, bound by bandwidth. At (rows, E) in bf16 the floor is 6 bytes an element forward
// and 10 backward: everything is read or written once.
//
// A block owns one group of whole rows, one row after another, and holds a row's group in registers
// between the sums and the scaling; the weight, and in the backward the block's share of dweight,
// stay there across rows. Groups that cannot be read by 16 bytes, or wider than the registers, take
// the plain kernels, which read rows twice.
//
// W = E / groups, the width of a group
#include "kernels/device/column_sum.cuh"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/row_tile.cuh"
#include "kernels/gated_rms_norm/gated_rms_norm_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kForwardWarps = 32;  // a multiprocessor

template <class T>
struct ForwardRows {
  const T* x;
  const T* z;
  const float* weight;
  T* y;
  int64_t x_stride, z_stride, y_stride;
  int64_t rows;
  int W;
  float eps;

  // The rows' share in a group.
  __device__ ForwardRows of_group(int group) const {
    ForwardRows rows = *this;
    const int64_t first = int64_t(group) * W;
    rows.x += first, rows.z += first, rows.weight += first, rows.y += first;
    return rows;
  }
};

// before: h = x silu(z) is normalised; after: h = x is, and then gated.
template <class T, GateOrder kGate>
__global__ void __launch_bounds__(kMaxRowThreads)
    gated_rms_norm_forward_kernel(ForwardRows<T> all) {
  constexpr int kWidth = kPieceWidth<T>;
  __shared__ RowSums<1> sums;
  const ForwardRows<T> a = all.of_group(blockIdx.y);
  RowTile<float, kWidth> weight;
  weight.load(a.weight, a.W);
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    RowTile<T, kWidth> x, z;
    x.load(a.x + row * a.x_stride, a.W);
    z.load(a.z + row * a.z_stride, a.W);
    float gated[kRowValues], square[1] = {0};
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) {
      gated[i] = x[i] * silu(z[i]);
      const float h = kGate == GateOrder::before ? gated[i] : x[i];
      square[0] += h * h;
    }
    sums(turn++, square);
    const float rstd = rsqrtf(square[0] / float(a.W) + a.eps);
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) x.set(i, weight[i] * gated[i] * rstd);
    x.store(a.y + row * a.y_stride, a.W);
  }
}

// The same for any width and alignment.
template <class T, GateOrder kGate>
__global__ void gated_rms_norm_forward_plain_kernel(ForwardRows<T> all) {
  __shared__ RowSums<1> sums;
  const ForwardRows<T> a = all.of_group(blockIdx.y);
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* const x = a.x + row * a.x_stride;
    const T* const z = a.z + row * a.z_stride;
    float square[1] = {0};
    for (int i = threadIdx.x; i < a.W; i += blockDim.x) {
      const float h = to_float(x[i]) * (kGate == GateOrder::before ? silu(to_float(z[i])) : 1);
      square[0] += h * h;
    }
    sums(turn++, square);
    const float rstd = rsqrtf(square[0] / float(a.W) + a.eps);
    for (int i = threadIdx.x; i < a.W; i += blockDim.x) {
      const float gated = to_float(x[i]) * silu(to_float(z[i]));
      a.y[row * a.y_stride + i] = from_float<T>(a.weight[i] * gated * rstd);
    }
  }
}

template <class T>
struct BackwardRows {
  const T* dy;
  const T* x;
  const T* z;
  const float* weight;
  T* dx;
  T* dz;
  float* partial_dweight;  // (blocks.count, E)
  int64_t dy_stride, x_stride, z_stride, dx_stride, dz_stride, partial_stride;
  int64_t rows;
  int W;
  float eps;

  __device__ BackwardRows of_group(int group) const {
    BackwardRows rows = *this;
    const int64_t first = int64_t(group) * W;
    rows.dy += first, rows.x += first, rows.z += first, rows.weight += first;
    rows.dx += first, rows.dz += first, rows.partial_dweight += first;
    return rows;
  }
};

// What the second pass needs of the first: the sums over a group of h^2 and of dn * h.
struct GroupScale {
  float rstd, mean;
};
__device__ GroupScale scale_of(const float (&totals)[2], int W, float eps) {
  const float rstd = rsqrtf(totals[0] / float(W) + eps);
  return {rstd, totals[1] * rstd / float(W)};
}

template <GateOrder kGate>
__device__ void add_to_sums(float (&totals)[2], float dy, float weight, float x, float silu) {
  const float h = kGate == GateOrder::before ? x * silu : x;
  const float dn = weight * dy * (kGate == GateOrder::before ? 1 : silu);
  totals[0] += h * h;
  totals[1] += dn * h;
}

struct Gradients {
  float dx, dz, dweight;
};
// s = sigmoid(z).
template <GateOrder kGate>
__device__ Gradients gradients(GroupScale scale, float dy, float weight, float x, float z,
                               float s) {
  const float silu = z * s, slope = s * (1 + z * (1 - s));
  const float weighted = weight * dy;
  if constexpr (kGate == GateOrder::before) {
    const float n = x * silu * scale.rstd;
    const float dh = scale.rstd * (weighted - n * scale.mean);
    return {dh * silu, dh * x * slope, dy * n};
  }
  const float n = x * scale.rstd;
  return {scale.rstd * (weighted * silu - n * scale.mean), weighted * n * slope, dy * n * silu};
}

// A row's group in shared memory.
template <class T>
struct BackwardSlot {
  T* dy;
  T* x;
  T* z;

  static constexpr int64_t kBytes = gated_norm_staged_bytes(sizeof(T));
  __device__ BackwardSlot(char* staging, int slot) {
    const int columns = kRowValues * blockDim.x;
    dy = reinterpret_cast<T*>(staging) + slot * 3 * columns;
    x = dy + columns;
    z = x + columns;
  }
};

// Shared memory: the sums' rooms, and kRowStages rows of dy, x, z, which arrive while the rows
// before are worked on.
template <class T, GateOrder kGate>
__global__ void __launch_bounds__(kMaxRowThreads)
    gated_rms_norm_backward_kernel(BackwardRows<T> all) {
  using Tile = RowTile<T, kPieceWidth<T>>;
  extern __shared__ __align__(16) char shared[];
  auto& sums = *reinterpret_cast<RowSums<2>*>(shared);
  char* const staging = shared + sizeof(RowSums<2>);
  const BackwardRows<T> a = all.of_group(blockIdx.y);
  const auto begin_copy = [&](int64_t row, int stage) {
    const BackwardSlot<T> slot(staging, stage);
    if (row < a.rows) {
      Tile::copy_to(slot.z, a.z + row * a.z_stride, a.W);
      Tile::copy_to(slot.x, a.x + row * a.x_stride, a.W);
      Tile::copy_to(slot.dy, a.dy + row * a.dy_stride, a.W);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kRowStages; ++stage)
    begin_copy(blockIdx.x + stage * int64_t(gridDim.x), stage);
  RowTile<float, kPieceWidth<T>> weight, dweight;
  weight.load(a.weight, a.W);
  dweight.fill(0);
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, ++turn) {
    const int stage = turn % kRowStages;
    const BackwardSlot<T> slot(staging, stage);
    wait_copies<kRowStages - 1>();
    Tile dy, x, z;
    z.load_from(slot.z);
    x.load_from(slot.x);
    dy.load_from(slot.dy);
    begin_copy(row + kRowStages * int64_t(gridDim.x), stage);
    float totals[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kRowValues; ++i)
      add_to_sums<kGate>(totals, dy[i], weight[i], x[i], silu(z[i]));
    sums(turn, totals);
    const GroupScale scale = scale_of(totals, a.W, a.eps);
#pragma unroll
    for (int i = 0; i < kRowValues; ++i) {
      const Gradients of = gradients<kGate>(scale, dy[i], weight[i], x[i], z[i], sigmoid(z[i]));
      dweight.set(i, dweight[i] + of.dweight);
      dy.set(i, of.dx);
      z.set(i, of.dz);
    }
    dy.store(a.dx + row * a.dx_stride, a.W);
    z.store(a.dz + row * a.dz_stride, a.W);
  }
  dweight.store(a.partial_dweight + blockIdx.x * a.partial_stride, a.W);
}

// The same for any width and alignment; the block's share of dweight is in memory.
template <class T, GateOrder kGate>
__global__ void gated_rms_norm_backward_plain_kernel(BackwardRows<T> all) {
  __shared__ RowSums<2> sums;
  const BackwardRows<T> a = all.of_group(blockIdx.y);
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, ++turn) {
    const T* const dy = a.dy + row * a.dy_stride;
    const T* const x = a.x + row * a.x_stride;
    const T* const z = a.z + row * a.z_stride;
    float totals[2] = {0, 0};
    for (int i = threadIdx.x; i < a.W; i += blockDim.x) {
      add_to_sums<kGate>(totals, to_float(dy[i]), a.weight[i], to_float(x[i]),
                         silu(to_float(z[i])));
    }
    sums(turn, totals);
    const GroupScale scale = scale_of(totals, a.W, a.eps);
    for (int i = threadIdx.x; i < a.W; i += blockDim.x) {
      const float gate = to_float(z[i]);
      const Gradients of = gradients<kGate>(scale, to_float(dy[i]), a.weight[i], to_float(x[i]),
                                            gate, sigmoid(gate));
      a.dx[row * a.dx_stride + i] = from_float<T>(of.dx);
      a.dz[row * a.dz_stride + i] = from_float<T>(of.dz);
      float& partial = a.partial_dweight[blockIdx.x * a.partial_stride + i];
      partial = (turn == 0 ? 0.0f : partial) + of.dweight;
    }
  }
}

// body<T, kGate>()
template <class Body>
void dispatch(DType dtype, GateOrder gate, Body&& body) {
  dispatch_float(dtype, [&]<class T>() {
    switch (gate) {
      case GateOrder::before:
        return body.template operator()<T, GateOrder::before>();
      case GateOrder::after:
        return body.template operator()<T, GateOrder::after>();
    }
    throw Error(ExitCode::bug, "no such order of gate and norm");
  });
}

}  // namespace

void gated_rms_norm_forward(const Context& ctx, const GatedRmsNormForward& args) {
  const int64_t W = args.x.row_size() / args.groups;
  dispatch(args.x.dtype, args.gate, [&]<class T, GateOrder kGate>() {
    const ForwardRows<T> rows = {.x = pointer<T>(args.x),
                                 .z = pointer<T>(args.z),
                                 .weight = args.weight.as<float>(),
                                 .y = pointer<T>(args.y),
                                 .x_stride = args.x.row_stride,
                                 .z_stride = args.z.row_stride,
                                 .y_stride = args.y.row_stride,
                                 .rows = args.x.rows(),
                                 .W = int(W),
                                 .eps = float(args.eps)};
    const bool tiled = holds_rows(W, sizeof(T), 0) &&
                       in_pieces<kPieceWidth<T>>(args.x, args.z, args.weight, args.y);
    const int64_t blocks =
        std::min(rows.rows, std::max<int64_t>(1, row_blocks(W, kForwardWarps) / args.groups));
    launch(
        ctx, "gated_rms_norm_forward",
        {.blocks = {unsigned(blocks), unsigned(args.groups)}, .threads = unsigned(row_threads(W))},
        tiled ? gated_rms_norm_forward_kernel<T, kGate>
              : gated_rms_norm_forward_plain_kernel<T, kGate>,
        rows);
  });
}

void gated_rms_norm_backward(const Context& ctx, const GatedRmsNormBackward& args,
                             TensorView partial_dweight) {
  const int64_t E = args.x.row_size(), W = E / args.groups;
  const RowBlocks blocks = gated_norm_row_blocks(args.x.rows(), E, args.groups);
  if (blocks.rows == 0) return;
  dispatch(args.x.dtype, args.gate, [&]<class T, GateOrder kGate>() {
    const BackwardRows<T> rows = {.dy = pointer<T>(args.dy),
                                  .x = pointer<T>(args.x),
                                  .z = pointer<T>(args.z),
                                  .weight = args.weight.as<float>(),
                                  .dx = pointer<T>(args.dx),
                                  .dz = pointer<T>(args.dz),
                                  .partial_dweight = partial_dweight.as<float>(),
                                  .dy_stride = args.dy.row_stride,
                                  .x_stride = args.x.row_stride,
                                  .z_stride = args.z.row_stride,
                                  .dx_stride = args.dx.row_stride,
                                  .dz_stride = args.dz.row_stride,
                                  .partial_stride = E,
                                  .rows = blocks.rows,
                                  .W = int(W),
                                  .eps = float(args.eps)};
    const bool tiled = gated_norm_holds(args.x.dtype, W) &&
                       in_pieces<kPieceWidth<T>>(args.dy, args.x, args.z, args.weight, args.dx,
                                                 args.dz, partial_dweight);
    launch(
        ctx, "gated_rms_norm_backward",
        {.blocks = {unsigned(blocks.count), unsigned(args.groups)},
         .threads = unsigned(row_threads(W)),
         .shared_bytes = tiled ? sizeof(RowSums<2>) + row_staging(W, BackwardSlot<T>::kBytes) : 0},
        tiled ? gated_rms_norm_backward_kernel<T, kGate>
              : gated_rms_norm_backward_plain_kernel<T, kGate>,
        rows);
  });
  add_column_sums(ctx, "gated_rms_norm_backward", partial_dweight.as<float>(), blocks.count, E,
                  args.dweight.as<float>());
}

}  // namespace sluice::cuda
