#include "kernels/grad_norm/grad_norm.h"

#include "kernels/core/dispatch.h"
#include "kernels/grad_norm/grad_norm_cpu.h"

namespace sluice {

void block_squares(const Context& ctx, const BlockSquares& args) {
  const auto [n] = args.x.shape<1>("x: (n)");
  expect("x", args.x, {n}, args.x.dtype, ctx.device);
  expect("sums", args.sums, {(n + kNormBlock - 1) / kNormBlock}, DType::f64, ctx.device);
  if (ctx.counting()) return;
  if (!ctx.device.is_cpu()) fail_no_cuda("block_squares");
  dispatch_float(args.x.dtype, [&]<class T>() { cpu::block_squares<T>(args); });
}

}  // namespace sluice
