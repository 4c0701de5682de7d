#include "kernels/activation/activation.h"

#include "kernels/activation/activation_cpu.h"
#include "kernels/activation/activation_cuda.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"

namespace sluice {

std::span<const char* const> enum_names(Activation) {
  static constexpr const char* kNames[] = {"swiglu", "relu2", "gelu"};
  return kNames;
}

void activation_forward(const Context& ctx, const ActivationForward& args) {
  const DType dtype = args.x.dtype;
  const bool gated = args.kind == Activation::swiglu;
  SLUICE_CHECK(args.x.dims.rank >= 1, "x: (..., F) is required");
  SLUICE_CHECK(bool(args.up) == gated, "up is given exactly for swiglu");
  expect("x", args.x, args.x.dims, dtype, ctx.device);
  expect("y", args.y, args.x.dims, dtype, ctx.device);
  if (gated) expect("up", args.up, args.x.dims, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::activation_forward(ctx, args);
    fail_no_cuda("activation_forward");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::activation_forward<T>(args); });
}

void activation_backward(const Context& ctx, const ActivationBackward& args) {
  const DType dtype = args.dy.dtype;
  const bool gated = args.kind == Activation::swiglu;
  SLUICE_CHECK(args.dy.dims.rank >= 1, "dy: (..., F) is required");
  SLUICE_CHECK(bool(args.up) == gated && bool(args.dup) == gated,
               "up and dup are given exactly for swiglu");
  expect("dy", args.dy, args.dy.dims, dtype, ctx.device);
  expect("x", args.x, args.dy.dims, dtype, ctx.device);
  expect("dx", args.dx, args.dy.dims, dtype, ctx.device);
  if (gated) expect("up", args.up, args.dy.dims, dtype, ctx.device);
  if (gated) expect("dup", args.dup, args.dy.dims, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::activation_backward(ctx, args);
    fail_no_cuda("activation_backward");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::activation_backward<T>(args); });
}

std::string describe_activation(Device device, DType dtype, int64_t F) {
  if (device.is_cpu() || dtype != DType::bf16 || whole_packs(F, dtype)) return "";
  constexpr double kPlain = 1.5;  // SwiGLU, F 4100 beside 4096
  return on_plain_kernels(concat("the activation of ", F, " columns runs"), kPlain,
                          "multiples of 8");
}

}  // namespace sluice
