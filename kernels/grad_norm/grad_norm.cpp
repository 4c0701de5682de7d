#include "kernels/grad_norm/grad_norm.h"

#include "kernels/core/dispatch.h"
#include "kernels/grad_norm/grad_norm_cpu.h"
#include "kernels/grad_norm/grad_norm_cuda.h"

namespace sluice {

void block_squares(const Context& ctx, const BlockSquares& args) {
  const auto [n] = args.x.shape<1>("x: (n)");
  expect("x", args.x, {n}, args.x.dtype, ctx.device);
  expect("sums", args.sums, {(n + kNormBlock - 1) / kNormBlock}, DType::f64, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::block_squares(ctx, args);
    fail_no_cuda("block_squares");
  }
  dispatch_float(args.x.dtype, [&]<class T>() { cpu::block_squares<T>(args); });
}

void ordered_sum(const Context& ctx, const OrderedSum& args) {
  const auto [n] = args.values.shape<1>("values: (n)");
  const auto [m] = args.places.shape<1>("places: (m)");
  expect("values", args.values, {n}, DType::f64, ctx.device);
  expect("places", args.places, {m}, DType::i64, ctx.device);
  expect("sum", args.sum, {1}, DType::f64, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  if (ctx.device.is_cuda()) {
    const TensorView partial = ctx.scratch->alloc({cuda::num_partials(m)}, DType::f64);
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::ordered_sum(ctx, args, partial);
    fail_no_cuda("ordered_sum");
  }
  if (ctx.counting()) return;
  cpu::ordered_sum(args);
}

void clip_gradient(const Context& ctx, const ClipGradient& args) {
  const auto [n] = args.squares.shape<1>("squares: (n)");
  expect("squares", args.squares, {n}, DType::f64, ctx.device);
  expect("loss", args.loss, {1}, DType::f64, ctx.device);
  expect("norm", args.norm, {1}, DType::f64, ctx.device);
  expect("grad_scale", args.grad_scale, {1}, DType::f64, ctx.device);
  expect("apply", args.apply, {1}, DType::f64, ctx.device);
  SLUICE_CHECK(args.clip >= 0, "clip must not be negative, got ", args.clip);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::clip_gradient(ctx, args);
    fail_no_cuda("clip_gradient");
  }
  cpu::clip_gradient(args);
}

}  // namespace sluice
