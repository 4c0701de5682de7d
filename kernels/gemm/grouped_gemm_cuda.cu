#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/gemm/gemm_cuda.h"
#include "kernels/gemm/gemm_plain.cuh"
#include "kernels/gemm/grouped_gemm_mma.h"
#include "kernels/gemm/grouped_gemm_wgmma.h"
#include "kernels/gemm/groups.cuh"

namespace sluice::cuda {

namespace {

// Groups of rows of A and C, each with its own B. blockIdx.y is the tile's column.
template <class T>
__global__ void __launch_bounds__(PlainTile::kThreads)
    grouped_plain_kernel(PlainProduct<T, T> product, const int64_t* offsets, int groups,
                         int64_t b_group) {
  __shared__ PlainTile tile;
  const GroupTile at = find_group_tile<PlainTile::kSize>(offsets, groups, int(blockIdx.x));
  if (at.group < 0) return;
  product.b += at.group * b_group;
  product.M = at.end;
  tile.compute(product, at.begin, int64_t(blockIdx.y) * PlainTile::kSize);
}

// Groups of the inner dimension: blockIdx.z is the group, whose C is its own.
template <class T>
__global__ void __launch_bounds__(PlainTile::kThreads)
    grouped_plain_weight_kernel(PlainProduct<T, float> product, const int64_t* offsets,
                                int64_t c_group) {
  __shared__ PlainTile tile;
  const int64_t begin = offsets[blockIdx.z];
  product.K = offsets[blockIdx.z + 1] - begin;
  if (product.K == 0 && product.beta == 1) return;
  product.a += begin * product.a_column;
  product.b += begin * product.b_row;
  product.c += blockIdx.z * c_group;
  tile.compute(product, int64_t(blockIdx.x) * PlainTile::kSize,
               int64_t(blockIdx.y) * PlainTile::kSize);
}

}  // namespace

void grouped_gemm(const Context& ctx, const GroupedGemm& args) {
  const int64_t rows = args.a.dim(0), K = args.a.dim(1), N = args.c.dim(1);
  const int64_t groups = args.offsets.numel() - 1;
  if (N == 0 || rows == 0) return;
  if (fits_grouped_mma(args)) {
    return fits_grouped_wgmma(args) ? grouped_gemm_wgmma(ctx, args) : grouped_gemm_mma(ctx, args);
  }
  const int64_t stride = args.weights.row_stride;
  dispatch_float(args.a.dtype, [&]<class T>() {
    const PlainProduct<T, T> product{.a = pointer<T>(args.a),
                                     .a_row = args.a.row_stride,
                                     .a_column = 1,
                                     .b = pointer<T>(args.weights),
                                     .b_row = args.transpose_weights ? 1 : stride,
                                     .b_column = args.transpose_weights ? stride : 1,
                                     .c = pointer<T>(args.c),
                                     .c_row = args.c.row_stride,
                                     .M = rows,
                                     .N = N,
                                     .K = K,
                                     .alpha = 1,
                                     .beta = float(args.beta)};
    launch(ctx, "grouped_gemm",
           {.blocks = {unsigned(max_row_tiles(rows, groups, PlainTile::kSize)),
                       unsigned(ceil_div(N, PlainTile::kSize))},
            .threads = PlainTile::kThreads},
           grouped_plain_kernel<T>, product, args.offsets.as<int64_t>(), int(groups),
           args.weights.dim(1) * stride);
  });
}

void grouped_gemm_weight(const Context& ctx, const GroupedGemmWeight& args) {
  const int64_t M = args.a.dim(1), N = args.b.dim(1);
  const int64_t groups = args.offsets.numel() - 1;
  if (M == 0 || N == 0) return;
  if (fits_grouped_mma(args)) {
    return fits_grouped_wgmma(args) ? grouped_gemm_weight_wgmma(ctx, args)
                                    : grouped_gemm_weight_mma(ctx, args);
  }
  dispatch_float(args.a.dtype, [&]<class T>() {
    const PlainProduct<T, float> product{.a = pointer<T>(args.a),
                                         .a_row = 1,
                                         .a_column = args.a.row_stride,
                                         .b = pointer<T>(args.b),
                                         .b_row = args.b.row_stride,
                                         .b_column = 1,
                                         .c = args.weights.as<float>(),
                                         .c_row = args.weights.row_stride,
                                         .M = M,
                                         .N = N,
                                         .K = 0,
                                         .alpha = 1,
                                         .beta = float(args.beta)};
    launch(ctx, "grouped_gemm_weight",
           {.blocks = {unsigned(ceil_div(M, PlainTile::kSize)),
                       unsigned(ceil_div(N, PlainTile::kSize)), unsigned(groups)},
            .threads = PlainTile::kThreads},
           grouped_plain_weight_kernel<T>, product, args.offsets.as<int64_t>(),
           M * args.weights.row_stride);
  });
}

}  // namespace sluice::cuda
