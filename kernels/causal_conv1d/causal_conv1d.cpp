#include "kernels/causal_conv1d/causal_conv1d.h"

#include <type_traits>

#include "kernels/causal_conv1d/causal_conv1d_cpu.h"
#include "kernels/causal_conv1d/causal_conv1d_cuda.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/plain_path.h"

namespace sluice {

namespace {

void backward_on_gpu(const Context& ctx, const CausalConv1dBackward& args) {
  const int64_t B = args.x.dim(0), T = args.x.dim(1), C = args.x.dim(2), K = args.weight.dim(1);
  const TensorView partial =
      ctx.scratch->alloc({cuda::conv_partials(B, T, C), C * K + C}, DType::f32);
  if (ctx.counting()) return;
  SLUICE_CHECK(args.dweight.packed(), "dweight must be packed");
  if constexpr (kBuiltWithCuda) return cuda::causal_conv1d_backward(ctx, args, partial);
  fail_no_cuda("causal_conv1d_backward");
}

}  // namespace

void causal_conv1d_forward(const Context& ctx, const CausalConv1dForward& args) {
  const auto [B, T, C] = args.x.shape<3>("x: (B, T, C)");
  const auto [weight_rows, K] = args.weight.shape<2>("weight: (C, K)");
  const DType dtype = args.x.dtype;
  SLUICE_CHECK(K >= 1, "weight: (C, K) needs at least one tap, got ", to_string(args.weight.dims));
  expect("x", args.x, {B, T, C}, dtype, ctx.device);
  expect("weight", args.weight, {C, K}, dtype, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
  expect("y", args.y, {B, T, C}, dtype, ctx.device);
  if (args.bias) expect("bias", args.bias, {C}, stat_dtype(dtype), ctx.device);
  if (args.halo) expect("halo", args.halo, {B, K - 1, C}, dtype, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const TensorView transposed =
      ctx.device.is_cpu() ? ctx.scratch->alloc({K, C}, dtype) : TensorView();
  if (ctx.counting()) return;
  SLUICE_CHECK(args.y.data != args.x.data || args.x.numel() == 0, "y must not alias x");
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::causal_conv1d_forward(ctx, args);
    fail_no_cuda("causal_conv1d_forward");
  }
  dispatch_float(dtype, [&]<class Real>() {
    if constexpr (std::is_same_v<Real, float>) {
      cpu::causal_conv1d_forward_simd(args, transposed);
    } else {
      cpu::causal_conv1d_forward<Real>(args);
    }
  });
}

void causal_conv1d_backward(const Context& ctx, const CausalConv1dBackward& args) {
  const auto [B, T, C] = args.x.shape<3>("x: (B, T, C)");
  const auto [weight_rows, K] = args.weight.shape<2>("weight: (C, K)");
  const DType dtype = args.x.dtype;
  SLUICE_CHECK(K >= 1, "weight: (C, K) needs at least one tap, got ", to_string(args.weight.dims));
  SLUICE_CHECK(bool(args.bias) == bool(args.dbias), "dbias is given exactly when bias is");
  SLUICE_CHECK(bool(args.halo) == bool(args.dhalo), "dhalo is given exactly when halo is");
  expect("dy", args.dy, {B, T, C}, dtype, ctx.device);
  expect("x", args.x, {B, T, C}, dtype, ctx.device);
  expect("weight", args.weight, {C, K}, dtype, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
  expect("dx", args.dx, {B, T, C}, dtype, ctx.device);
  expect("dweight", args.dweight, {C, K}, stat_dtype(dtype), ctx.device);
  if (args.bias) expect("bias", args.bias, {C}, stat_dtype(dtype), ctx.device);
  if (args.bias) expect("dbias", args.dbias, {C}, stat_dtype(dtype), ctx.device);
  if (args.halo) expect("halo", args.halo, {B, K - 1, C}, dtype, ctx.device);
  if (args.halo) expect("dhalo", args.dhalo, {B, K - 1, C}, dtype, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  SLUICE_CHECK(ctx.counting() || args.x.numel() == 0 ||
                   (args.dx.data != args.dy.data && args.dx.data != args.x.data),
               "dx must not alias dy or x");
  if (ctx.device.is_cuda()) return backward_on_gpu(ctx, args);
  const TensorView transposed = ctx.scratch->alloc({K, C}, dtype);
  const TensorView partial =
      ctx.scratch->alloc({cpu::conv_blocks(B * T).count, K + 1, C}, stat_dtype(dtype));
  if (ctx.counting()) return;
  dispatch_float(dtype, [&]<class Real>() {
    if constexpr (std::is_same_v<Real, float>) {
      cpu::causal_conv1d_backward_simd(args, transposed, partial);
    } else {
      cpu::causal_conv1d_backward<Real>(args);
    }
  });
}

void causal_conv1d_step(const Context& ctx, const CausalConv1dStep& args) {
  const auto [B, C] = args.x.shape<2>("x: (B, C)");
  const auto [weight_rows, K] = args.weight.shape<2>("weight: (C, K)");
  const DType dtype = args.x.dtype;
  SLUICE_CHECK(K >= 1, "weight: (C, K) needs at least one tap, got ", to_string(args.weight.dims));
  expect("x", args.x, {B, C}, dtype, ctx.device);
  expect("weight", args.weight, {C, K}, dtype, ctx.device);
  expect("tail", args.tail, {B, K - 1, C}, dtype, ctx.device);
  expect("y", args.y, {B, C}, dtype, ctx.device);
  if (args.bias) expect("bias", args.bias, {C}, stat_dtype(dtype), ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::causal_conv1d_step(ctx, args);
    fail_no_cuda("causal_conv1d_step");
  }
  dispatch_float(dtype, [&]<class Real>() { cpu::causal_conv1d_step<Real>(args); });
}

std::string describe_convolution(Device device, int64_t C, int64_t K, int64_t first) {
  if (device.is_cpu() || (cuda::conv_holds(C, K) && first % cuda::kConvWidth == 0)) return "";
  constexpr double kPlainTap = 5.5;  // C 4354 beside 4352, K 3 and 5 beside 4
  return on_plain_kernels(
      concat("the convolution of ", C, " channels over ", K, " tokens runs"), kPlainTap * double(K),
      concat(cuda::kConvTaps, " tokens and multiples of ", cuda::kConvWidth, " channels"));
}

}  // namespace sluice
