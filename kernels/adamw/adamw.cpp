#include "kernels/adamw/adamw.h"

#include "kernels/adamw/adamw_cpu.h"
#include "kernels/adamw/adamw_cuda.h"
#include "kernels/core/dispatch.h"

namespace sluice {

void adamw(const Context& ctx, const AdamW& args) {
  const DType dtype = args.value.dtype;
  const auto [n] = args.value.shape<1>("value: (n)");
  const auto [S, columns] = args.spans.shape<2>("spans: (S, kNumSpanColumns)");
  expect("value", args.value, {n}, dtype, ctx.device);
  if (args.rounded) expect("rounded", args.rounded, {n}, DType::bf16, ctx.device);
  expect("grad", args.grad, {n}, dtype, ctx.device);
  expect("exp_avg", args.exp_avg, {n}, dtype, ctx.device);
  expect("exp_avg_sq", args.exp_avg_sq, {n}, dtype, ctx.device);
  expect("scalars", args.scalars, {kNumUpdateScalars}, DType::f64, ctx.device);
  expect("spans", args.spans, {S, kNumSpanColumns}, DType::f64, ctx.device);
  SLUICE_CHECK(args.beta1 >= 0 && args.beta1 < 1 && args.beta2 >= 0 && args.beta2 < 1,
               "betas lie in [0, 1), got ", args.beta1, " and ", args.beta2);
  SLUICE_CHECK(args.eps > 0, "eps must be positive, got ", args.eps);
  SLUICE_CHECK(args.first >= 0, "first is an index, got ", args.first);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::adamw(ctx, args);
    fail_no_cuda("adamw");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::adamw<T>(args); });
}

}  // namespace sluice
