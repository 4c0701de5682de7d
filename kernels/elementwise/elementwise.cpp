#include "kernels/elementwise/elementwise.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/row_blocks.h"
#include "kernels/elementwise/elementwise_cpu.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace sluice {

void add(const Context& ctx, ConstTensorView x, TensorView y) {
  expect("x", x, y.dims, y.dtype, ctx.device);
  expect("y", y, y.dims, y.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::add(ctx, x, y);
    fail_no_cuda("add");
  }
  dispatch_float(y.dtype, [&]<class T>() { cpu::add<T>(x, y); });
}

void copy(const Context& ctx, ConstTensorView x, TensorView y) {
  expect("x", x, y.dims, y.dtype, ctx.device);
  expect("y", y, y.dims, y.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::copy(ctx, x, y);
    fail_no_cuda("copy");
  }
  cpu::copy(x, y);
}

void convert(const Context& ctx, ConstTensorView x, TensorView y) {
  expect("x", x, y.dims, x.dtype, ctx.device);
  expect("y", y, y.dims, y.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::convert(ctx, x, y);
    fail_no_cuda("convert");
  }
  cpu::convert(x, y);
}

void scale(const Context& ctx, double factor, TensorView y) {
  expect("y", y, y.dims, y.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::scale(ctx, factor, y);
    fail_no_cuda("scale");
  }
  dispatch_float(y.dtype, [&]<class T>() { cpu::scale<T>(T(factor), y); });
}

void zero(const Context& ctx, TensorView y) {
  expect("y", y, y.dims, y.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::zero(ctx, y);
    fail_no_cuda("zero");
  }
  cpu::zero(y);
}

void tree_sum(const Context& ctx, ConstTensorView x, TensorView y) {
  const auto [n, m] = x.shape<2>("x: (n, m)");
  SLUICE_CHECK(n >= 1, "a sum of no rows");
  expect("x", x, {n, m}, stat_dtype(x.dtype), ctx.device);
  expect("y", y, {m}, x.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::tree_sum(ctx, x, y);
    fail_no_cuda("tree_sum");
  }
  dispatch_float(x.dtype, [&]<class T>() { cpu::tree_sum<T>(x, y); });
}

void sum_rows(const Context& ctx, ConstTensorView x, TensorView total) {
  expect("x", x, x.dims, x.dtype, ctx.device);
  expect("total", total, {x.row_size()}, stat_dtype(x.dtype), ctx.device);
  const int64_t max_blocks = ctx.device.is_cuda() ? cuda::kSumBlocks : RowBlocks::kMaxBlocks;
  const ArenaScope scope(*ctx.scratch);
  const TensorView partial = ctx.scratch->alloc(
      {RowBlocks(x.rows(), max_blocks).count, x.row_size()}, stat_dtype(x.dtype));
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::sum_rows(ctx, x, total, partial);
    fail_no_cuda("sum_rows");
  }
  dispatch_float(x.dtype, [&]<class T>() { cpu::sum_rows<T>(x, total, partial); });
}

}  // namespace sluice
