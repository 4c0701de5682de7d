#include "kernels/rope/rope.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/plain_path.h"
#include "kernels/rope/rope_cpu.h"
#include "kernels/rope/rope_cuda.h"

namespace sluice {
namespace {

void rotate(const char* name, const Context& ctx, const Rope& args, int direction) {
  const auto [B, T, heads, head_dim] = args.x.shape<4>("x: (B, T, heads, head_dim)");
  SLUICE_CHECK(args.rotary_dims >= 0 && args.rotary_dims % 2 == 0 && args.rotary_dims <= head_dim,
               "rotary_dims must be even and at most head_dim = ", head_dim, ", got ",
               args.rotary_dims);
  SLUICE_CHECK(args.theta > 0, "theta must be positive, got ", args.theta);
  expect("x", args.x, {B, T, heads, head_dim}, args.x.dtype, ctx.device);
  expect("positions", args.positions, {B, T}, DType::i32, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::rope(ctx, args, direction);
    fail_no_cuda(name);
  }
  dispatch_float(args.x.dtype, [&]<class Real>() { cpu::rope<Real>(args, direction); });
}

}  // namespace

void rope_forward(const Context& ctx, const Rope& args) { rotate("rope_forward", ctx, args, 1); }

void rope_backward(const Context& ctx, const Rope& args) { rotate("rope_backward", ctx, args, -1); }

std::string describe_rope(Device device, DType dtype, int64_t head_dim, int64_t rotary_dims) {
  if (device.is_cpu() || dtype != DType::bf16) return "";
  if (rotary_dims == 0 || cuda::rope_in_packs(dtype, head_dim, rotary_dims)) return "";
  constexpr double kPlain = 2.3;  // head_dim 124 beside 128, all of it rotated
  return on_plain_kernels(
      concat("the rotation of ", rotary_dims, " columns of heads of ", head_dim, " runs"), kPlain,
      "head dims in multiples of 8, rotated columns of 16");
}

}  // namespace sluice
