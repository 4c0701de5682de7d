#include "kernels/state_passing/state_passing.h"

#include "kernels/core/dispatch.h"
#include "kernels/state_passing/state_passing_cpu.h"
#include "kernels/state_passing/state_passing_cuda.h"

namespace sluice {

namespace {

// Of states that are operands of products and no more.
DType operand_dtype(const Context& ctx, const ConstTensorView& view, DType dtype) {
  return ctx.device.is_cuda() && view.dtype == DType::bf16 ? DType::bf16 : dtype;
}

void check(const Context& ctx, const StatePassingForward& args) {
  const auto [B, M, H, P, N] = args.state.shape<5>("state: (B, M, H, P, N)");
  const DType dtype = args.state.dtype;
  SLUICE_CHECK(args.state.numel() > 0, "state is empty: ", to_string(args.state.dims));
  expect("state", args.state, args.state.dims, dtype, ctx.device);
  expect("decay", args.decay, {B, M, H}, dtype, ctx.device);
  SLUICE_CHECK(args.incoming || args.final_state || args.total_decay, "there is no output");
  if (args.incoming) {
    expect("incoming", args.incoming, args.state.dims, operand_dtype(ctx, args.incoming, dtype),
           ctx.device);
  }
  if (args.initial) expect("initial", args.initial, {B, H, P, N}, dtype, ctx.device);
  if (args.final_state) expect("final_state", args.final_state, {B, H, P, N}, dtype, ctx.device);
  if (args.total_decay) expect("total_decay", args.total_decay, {B, H}, dtype, ctx.device);
}

}  // namespace

void state_passing_forward(const Context& ctx, const StatePassingForward& args) {
  check(ctx, args);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::state_passing_forward(ctx, args);
    fail_no_cuda("state_passing_forward");
  }
  dispatch_float(args.state.dtype, [&]<class T>() { cpu::state_passing_forward<T>(args); });
}

void state_passing_backward(const Context& ctx, const StatePassingBackward& args) {
  const auto [B, M, H, P, N] = args.dincoming.shape<5>("dincoming: (B, M, H, P, N)");
  const DType dtype = args.dincoming.dtype;
  SLUICE_CHECK(args.dincoming.numel() > 0, "dincoming is empty: ", to_string(args.dincoming.dims));
  expect("dincoming", args.dincoming, args.dincoming.dims, dtype, ctx.device);
  SLUICE_CHECK(bool(args.incoming) == bool(args.dlog_decay),
               "incoming is given exactly when dlog_decay is");
  SLUICE_CHECK(args.doutgoing || args.dlog_decay || args.dinitial, "there is no output");
  expect("decay", args.decay, {B, M, H}, dtype, ctx.device);
  const auto expect_operand = [&](const char* name, const ConstTensorView& view) {
    expect(name, view, args.dincoming.dims, operand_dtype(ctx, view, dtype), ctx.device);
  };
  if (args.incoming) expect_operand("incoming", args.incoming);
  if (args.doutgoing) expect_operand("doutgoing", args.doutgoing);
  if (args.dlog_decay) expect("dlog_decay", args.dlog_decay, {B, M, H}, dtype, ctx.device);
  if (args.dfinal) expect("dfinal", args.dfinal, {B, H, P, N}, dtype, ctx.device);
  if (args.dinitial) expect("dinitial", args.dinitial, {B, H, P, N}, dtype, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  TensorView partial;
  if (ctx.device.is_cuda() && args.dlog_decay)
    partial = ctx.scratch->alloc({B * M * H, cuda::state_passing_partials(P * N)}, dtype);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::state_passing_backward(ctx, args, partial);
    fail_no_cuda("state_passing_backward");
  }
  dispatch_float(dtype, [&]<class T>() { cpu::state_passing_backward<T>(args); });
}

}  // namespace sluice
