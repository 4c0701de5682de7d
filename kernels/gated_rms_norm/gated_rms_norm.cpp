#include "kernels/gated_rms_norm/gated_rms_norm.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/plain_path.h"
#include "kernels/core/row_blocks.h"
#include "kernels/gated_rms_norm/gated_rms_norm_cpu.h"
#include "kernels/gated_rms_norm/gated_rms_norm_cuda.h"

namespace sluice {

std::span<const char* const> enum_names(GateOrder) {
  static constexpr const char* kNames[] = {"before", "after"};
  return kNames;
}

namespace {

// E, after the checks that the forward and the backward share.
template <class Args>
int64_t expect_inputs(const Context& ctx, const Args& args) {
  const DType dtype = args.x.dtype;
  const int64_t E = args.x.dims.rank >= 2 ? args.x.dim(args.x.dims.rank - 1) : 0;
  SLUICE_CHECK(E > 0 && args.x.row_size() == E, "x: (..., E) with rows of E, got ",
               to_string(args.x.dims));
  SLUICE_CHECK(args.groups >= 1 && E % args.groups == 0, "groups must divide E = ", E, ", got ",
               args.groups);
  SLUICE_CHECK(args.eps >= 0, "eps must not be negative, got ", args.eps);
  expect("x", args.x, args.x.dims, dtype, ctx.device);
  expect("z", args.z, args.x.dims, dtype, ctx.device);
  expect("weight", args.weight, {E}, stat_dtype(dtype), ctx.device);
  return E;
}

}  // namespace

void gated_rms_norm_forward(const Context& ctx, const GatedRmsNormForward& args) {
  expect_inputs(ctx, args);
  expect("y", args.y, args.x.dims, args.x.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::gated_rms_norm_forward(ctx, args);
    fail_no_cuda("gated_rms_norm_forward");
  }
  dispatch_float(args.x.dtype, [&]<class T>() { cpu::gated_rms_norm_forward<T>(args); });
}

void gated_rms_norm_backward(const Context& ctx, const GatedRmsNormBackward& args) {
  const int64_t E = expect_inputs(ctx, args);
  const DType dtype = args.x.dtype;
  expect("dy", args.dy, args.x.dims, dtype, ctx.device);
  expect("dx", args.dx, args.x.dims, dtype, ctx.device);
  expect("dz", args.dz, args.x.dims, dtype, ctx.device);
  expect("dweight", args.dweight, {E}, stat_dtype(dtype), ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const RowBlocks blocks = ctx.device.is_cuda()
                               ? cuda::gated_norm_row_blocks(args.x.rows(), E, args.groups)
                               : RowBlocks(args.x.rows());
  const TensorView partial = ctx.scratch->alloc({blocks.count, E}, stat_dtype(dtype));
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::gated_rms_norm_backward(ctx, args, partial);
    fail_no_cuda("gated_rms_norm_backward");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::gated_rms_norm_backward<T>(args, partial); });
}

std::string describe_gated_norm(Device device, DType dtype, int64_t W) {
  if (device.is_cpu() || dtype != DType::bf16 || cuda::gated_norm_holds(dtype, W)) return "";
  constexpr double kPlain = 4.2;  // W 4100 beside 4096
  return on_plain_kernels(concat("the gated norm of ", W, " columns runs"), kPlain,
                          concat("multiples of 8 up to ", cuda::kMaxRowWidth));
}

}  // namespace sluice
