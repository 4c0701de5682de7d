#include "kernels/rms_norm/rms_norm.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"
#include "kernels/core/row_blocks.h"
#include "kernels/rms_norm/rms_norm_cpu.h"
#include "kernels/rms_norm/rms_norm_cuda.h"

namespace sluice {
namespace {

void expect_dtypes(const Context& ctx, DType residual, DType dtype) {
  const bool mixed = residual == DType::f32 && dtype == DType::bf16 && ctx.device.is_cuda();
  SLUICE_CHECK(residual == dtype || mixed,
               "the residual stream has the branches' dtype, or on GPUs f32 beside bf16; got ",
               name_of(residual), " beside ", name_of(dtype));
}

}  // namespace

void rms_norm_forward(const Context& ctx, const RmsNormForward& args) {
  const DType residual = args.x.dtype, dtype = args.y.dtype;
  const int64_t D = args.x.dims.rank >= 2 ? args.x.dim(args.x.dims.rank - 1) : 0;
  SLUICE_CHECK(D > 0 && args.x.row_size() == D, "x: (..., D) with rows of D, got ",
               to_string(args.x.dims));
  SLUICE_CHECK(bool(args.delta) == bool(args.sum), "sum is written exactly when delta is given");
  SLUICE_CHECK(args.eps >= 0, "eps must not be negative, got ", args.eps);
  expect_dtypes(ctx, residual, dtype);
  expect("x", args.x, args.x.dims, residual, ctx.device);
  expect("y", args.y, args.x.dims, dtype, ctx.device);
  if (args.delta) expect("delta", args.delta, args.x.dims, dtype, ctx.device);
  if (args.sum) expect("sum", args.sum, args.x.dims, residual, ctx.device);
  if (args.weight) expect("weight", args.weight, {D}, stat_dtype(dtype), ctx.device);
  if (args.rstd) expect("rstd", args.rstd, {args.x.rows()}, stat_dtype(dtype), ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::rms_norm_forward(ctx, args);
    fail_no_cuda("rms_norm_forward");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::rms_norm_forward<T>(args); });
}

void rms_norm_backward(const Context& ctx, const RmsNormBackward& args) {
  const DType residual = args.sum.dtype, dtype = args.dy.dtype;
  const int64_t D = args.dy.dims.rank >= 2 ? args.dy.dim(args.dy.dims.rank - 1) : 0;
  SLUICE_CHECK(D > 0 && args.dy.row_size() == D, "dy: (..., D) with rows of D, got ",
               to_string(args.dy.dims));
  SLUICE_CHECK(bool(args.weight) == bool(args.dweight), "dweight is given exactly when weight is");
  SLUICE_CHECK(!args.dx_rounded || residual != dtype,
               "dx_rounded is for a dx of another dtype than dy's; both are ", name_of(dtype));
  expect_dtypes(ctx, residual, dtype);
  expect("dy", args.dy, args.dy.dims, dtype, ctx.device);
  expect("sum", args.sum, args.dy.dims, residual, ctx.device);
  expect("rstd", args.rstd, {args.dy.rows()}, stat_dtype(dtype), ctx.device);
  expect("dx", args.dx, args.dy.dims, residual, ctx.device);
  if (args.dsum) expect("dsum", args.dsum, args.dy.dims, residual, ctx.device);
  if (args.dx_rounded) expect("dx_rounded", args.dx_rounded, args.dy.dims, dtype, ctx.device);
  if (args.weight) expect("weight", args.weight, {D}, stat_dtype(dtype), ctx.device);
  if (args.dweight) expect("dweight", args.dweight, {D}, stat_dtype(dtype), ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const RowBlocks blocks =
      ctx.device.is_cuda() ? cuda::norm_row_blocks(args.dy.rows(), D) : RowBlocks(args.dy.rows());
  const TensorView partial = ctx.scratch->alloc({blocks.count, D}, stat_dtype(dtype));
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::rms_norm_backward(ctx, args, partial);
    fail_no_cuda("rms_norm_backward");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::rms_norm_backward<T>(args, partial); });
}

std::string describe_norm(Device device, DType residual, DType dtype, int64_t D,
                          std::initializer_list<int64_t> apart) {
  if (device.is_cpu() || dtype != DType::bf16) return "";
  const bool holds = cuda::rms_norm_holds(residual, dtype, D);
  if (holds && whole_packs(apart, dtype)) return "";
  constexpr double kPlain = 4, kPlainMixed = 2.6;  // D 2050 beside 2048, and 8200 beside 8192
  return on_plain_kernels(
      concat("the norm of ", D, holds ? " columns within others" : " columns", " runs"),
      residual == dtype ? kPlain : kPlainMixed,
      concat("multiples of 8 up to ", cuda::kMaxRowWidth,
             holds ? " that begin at multiples of 8" : ""));
}

}  // namespace sluice
