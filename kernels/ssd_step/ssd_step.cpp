#include "kernels/ssd_step/ssd_step.h"

#include "kernels/core/dispatch.h"
#include "kernels/ssd_step/ssd_step_cpu.h"
#include "kernels/ssd_step/ssd_step_cuda.h"

namespace sluice {

void ssd_step(const Context& ctx, const SsdStep& args) {
  const auto [B, H, P] = args.x.shape<3>("x: (B, H, P)");
  const int64_t G = args.B.shape<3>("B: (B, G, N)")[1], N = args.B.dim(2);
  const DType dtype = args.x.dtype, statistics = stat_dtype(args.x.dtype);
  SLUICE_CHECK(B > 0 && P > 0 && N > 0, "x and B are empty: ", to_string(args.x.dims), ", ",
               to_string(args.B.dims));
  SLUICE_CHECK(G > 0 && H > 0 && H % G == 0, "groups must divide heads, got ", G, " and ", H);
  SLUICE_CHECK(args.dt_min >= 0 && args.dt_min <= args.dt_max, "dt_min ", args.dt_min,
               " and dt_max ", args.dt_max, " must satisfy 0 <= dt_min <= dt_max");
  expect("x", args.x, args.x.dims, dtype, ctx.device);
  expect("dt_raw", args.dt_raw, {B, H}, dtype, ctx.device);
  expect("dt_bias", args.dt_bias, {H}, statistics, ctx.device);
  expect("A_log", args.A_log, {H}, statistics, ctx.device);
  expect("B", args.B, {B, G, N}, dtype, ctx.device);
  expect("C", args.C, {B, G, N}, dtype, ctx.device);
  expect("D", args.D, {H}, statistics, ctx.device);
  expect("state", args.state, {B, H, P, N}, statistics, ctx.device);
  expect("y", args.y, args.x.dims, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::ssd_step(ctx, args);
    fail_no_cuda("ssd_step");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::ssd_step<T>(args); });
}

}  // namespace sluice
