#include "kernels/rms_norm/rms_norm.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/row_blocks.h"
#include "kernels/rms_norm/rms_norm_cpu.h"

namespace sluice {

void rms_norm_forward(const Context& ctx, const RmsNormForward& args) {
  const DType dtype = args.x.dtype;
  const int64_t D = args.x.dims.rank >= 2 ? args.x.dim(args.x.dims.rank - 1) : 0;
  SLUICE_CHECK(D > 0 && args.x.row_size() == D, "x: (..., D) with rows of D, got ",
               to_string(args.x.dims));
  SLUICE_CHECK(bool(args.delta) == bool(args.sum), "sum is written exactly when delta is given");
  SLUICE_CHECK(args.eps >= 0, "eps must not be negative, got ", args.eps);
  expect("y", args.y, args.x.dims, dtype, ctx.device);
  if (args.delta) expect("delta", args.delta, args.x.dims, dtype, ctx.device);
  if (args.sum) expect("sum", args.sum, args.x.dims, dtype, ctx.device);
  if (args.weight) expect("weight", args.weight, {D}, stat_dtype(dtype), ctx.device);
  if (args.rstd) expect("rstd", args.rstd, {args.x.rows()}, stat_dtype(dtype), ctx.device);
  if (ctx.counting()) return;
  if (!ctx.device.is_cpu()) fail_no_cuda("rms_norm_forward");
  dispatch_float(dtype, [&]<class T>() { cpu::rms_norm_forward<T>(args); });
}

void rms_norm_backward(const Context& ctx, const RmsNormBackward& args) {
  const DType dtype = args.dy.dtype;
  const int64_t D = args.dy.dims.rank >= 2 ? args.dy.dim(args.dy.dims.rank - 1) : 0;
  SLUICE_CHECK(D > 0 && args.dy.row_size() == D, "dy: (..., D) with rows of D, got ",
               to_string(args.dy.dims));
  SLUICE_CHECK(bool(args.weight) == bool(args.dweight), "dweight is given exactly when weight is");
  expect("sum", args.sum, args.dy.dims, dtype, ctx.device);
  expect("rstd", args.rstd, {args.dy.rows()}, stat_dtype(dtype), ctx.device);
  expect("dx", args.dx, args.dy.dims, dtype, ctx.device);
  if (args.dsum) expect("dsum", args.dsum, args.dy.dims, dtype, ctx.device);
  if (args.weight) expect("weight", args.weight, {D}, stat_dtype(dtype), ctx.device);
  if (args.dweight) expect("dweight", args.dweight, {D}, stat_dtype(dtype), ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const TensorView partial =
      ctx.scratch->alloc({RowBlocks(args.dy.rows()).count, D}, stat_dtype(dtype));
  if (ctx.counting()) return;
  if (!ctx.device.is_cpu()) fail_no_cuda("rms_norm_backward");
  dispatch_float(dtype, [&]<class T>() { cpu::rms_norm_backward<T>(args, partial); });
}

}  // namespace sluice
