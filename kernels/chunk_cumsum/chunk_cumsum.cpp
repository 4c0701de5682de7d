#include "kernels/chunk_cumsum/chunk_cumsum.h"

#include "kernels/chunk_cumsum/chunk_cumsum_cpu.h"
#include "kernels/chunk_cumsum/chunk_cumsum_cuda.h"
#include "kernels/core/dispatch.h"

namespace sluice {
namespace {

// What forward and backward share.
template <class Args>
void check_inputs(const Context& ctx, const Args& args) {
  const auto [B, T, H] = args.dt_raw.template shape<3>("dt_raw: (B, T, H)");
  const DType statistics = stat_dtype(args.dt_raw.dtype);
  SLUICE_CHECK(B > 0 && T > 0 && H > 0, "dt_raw is empty: ", to_string(args.dt_raw.dims));
  SLUICE_CHECK(args.chunk > 0, "chunk must be positive, got ", args.chunk);
  SLUICE_CHECK(args.dt_min >= 0 && args.dt_min <= args.dt_max, "dt_min ", args.dt_min,
               " and dt_max ", args.dt_max, " must satisfy 0 <= dt_min <= dt_max");
  expect("dt_bias", args.dt_bias, {H}, statistics, ctx.device);
  expect("A_log", args.A_log, {H}, statistics, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
}

}  // namespace

void chunk_cumsum_forward(const Context& ctx, const ChunkCumsumForward& args) {
  check_inputs(ctx, args);
  const DType statistics = stat_dtype(args.dt_raw.dtype);
  expect("dt_raw", args.dt_raw, args.dt_raw.dims, args.dt_raw.dtype, ctx.device);
  expect("dt", args.dt, args.dt_raw.dims, statistics, ctx.device);
  expect("cum", args.cum, args.dt_raw.dims, statistics, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::chunk_cumsum_forward(ctx, args);
    fail_no_cuda("chunk_cumsum_forward");
  }
  dispatch_float(args.dt_raw.dtype, [&]<class T>() { cpu::chunk_cumsum_forward<T>(args); });
}

void chunk_cumsum_backward(const Context& ctx, const ChunkCumsumBackward& args) {
  check_inputs(ctx, args);
  const Dims& dims = args.dt_raw.dims;  // (B, T, H)
  const DType statistics = stat_dtype(args.dt_raw.dtype);
  expect("dt_raw", args.dt_raw, dims, args.dt_raw.dtype, ctx.device);
  expect("ddt", args.ddt, dims, statistics, ctx.device);
  expect("dcum", args.dcum, dims, statistics, ctx.device);
  expect("ddt_raw", args.ddt_raw, dims, args.dt_raw.dtype, ctx.device);
  expect("ddt_bias", args.ddt_bias, {dims[2]}, statistics, ctx.device);
  expect("dA_log", args.dA_log, {dims[2]}, statistics, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const TensorView partial =
      ctx.scratch->alloc({dims[0] * num_chunks(dims[1], args.chunk), 2 * dims[2]}, statistics);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::chunk_cumsum_backward(ctx, args, partial);
    fail_no_cuda("chunk_cumsum_backward");
  }
  dispatch_float(args.dt_raw.dtype,
                 [&]<class T>() { cpu::chunk_cumsum_backward<T>(args, partial); });
}

}  // namespace sluice
