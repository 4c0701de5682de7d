#include "kernels/initial_values/initial_values.h"

#include "kernels/core/dispatch.h"
#include "kernels/initial_values/initial_values_cpu.h"
#include "kernels/initial_values/initial_values_cuda.h"

namespace sluice {

void initial_values(const Context& ctx, const InitialValues& args) {
  const DType dtype = args.values.dtype;
  expect("values", args.values, args.values.dims, dtype, ctx.device);
  SLUICE_CHECK(args.values.packed() && stat_dtype(dtype) == dtype,
               "initial values are packed f32 or f64, got ", name_of(dtype));
  SLUICE_CHECK(args.first >= 0, "first must not be negative, got ", args.first);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::initial_values(ctx, args);
    fail_no_cuda("initial_values");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::initial_values<T>(args); });
}

}  // namespace sluice
