#include "kernels/grad_norm/grad_norm.h"

#include "kernels/core/dispatch.h"
#include "kernels/grad_norm/grad_norm_cpu.h"

namespace sluice {

void squared_norm(const Context& ctx, const SquaredNorm& args) {
  const auto [n] = args.x.shape<1>("x: (n)");
  expect("x", args.x, {n}, args.x.dtype, ctx.device);
  expect("sum", args.sum, {1}, DType::f64, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const int64_t blocks = (n + cpu::kNormBlock - 1) / cpu::kNormBlock;
  const TensorView partial = ctx.scratch->alloc({blocks}, DType::f64);
  if (ctx.counting()) return;
  if (!ctx.device.is_cpu()) fail_no_cuda("squared_norm");
  dispatch_float(args.x.dtype, [&]<class T>() { cpu::squared_norm<T>(args, partial); });
}

}  // namespace sluice
