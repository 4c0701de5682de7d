#include "kernels/topk_router/topk_router.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/row_blocks.h"
#include "kernels/topk_router/router_report_cuda.h"
#include "kernels/topk_router/topk_router_cpu.h"
#include "kernels/topk_router/topk_router_cuda.h"

namespace sluice {
namespace {

void check_options(const RouterOptions& options, int64_t X) {
  const int64_t groups = options.num_groups;
  SLUICE_CHECK(options.top_k >= 1 && options.top_k <= X, "top_k lies in [1, ", X,
               "], the number of experts, got ", options.top_k);
  SLUICE_CHECK(groups >= 1 && X % groups == 0, "num_groups divides the ", X, " experts, got ",
               groups);
  SLUICE_CHECK(options.topk_group >= 1 && options.topk_group <= groups, "topk_group lies in [1, ",
               groups, "], the number of groups, got ", options.topk_group);
  SLUICE_CHECK(options.top_k <= options.topk_group * (X / groups), "the ", options.topk_group,
               " best groups hold ", options.topk_group * (X / groups), " experts, top_k is ",
               options.top_k);
}

void check_chosen(const TensorView& experts, int64_t X) {
  for (int64_t t = 0; t < experts.rows(); ++t) {
    for (int64_t j = 0; j < experts.row_size(); ++j) {
      const int32_t expert = experts.row<int32_t>(t)[j];
      SLUICE_CHECK(expert >= 0 && expert < X, "chosen expert ", expert, " of token ", t,
                   " is outside [0, ", X, ")");
    }
  }
}

}  // namespace

std::span<const char* const> enum_names(RouterScore) {
  static constexpr const char* kNames[] = {"softmax", "sigmoid"};
  return kNames;
}

void topk_router_forward(const Context& ctx, const TopkRouterForward& args) {
  const auto [B, T, X] = args.logits.shape<3>("logits: (B, T, X)");
  const int64_t k = args.options.top_k;
  const DType dtype = args.logits.dtype;
  check_options(args.options, X);
  expect("logits", args.logits, {B, T, X}, dtype, ctx.device);
  if (args.bias) expect("bias", args.bias, {X}, dtype, ctx.device);
  expect("experts", args.experts, {B, T, k}, DType::i32, ctx.device);
  expect("weights", args.weights, {B, T, k}, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::topk_router_forward(ctx, args);
    fail_no_cuda("topk_router_forward");
  }
  if (args.chosen) check_chosen(args.experts, X);
  dispatch_float(dtype, [&]<class Float>() { cpu::topk_router_forward<Float>(args); });
}

void topk_router_backward(const Context& ctx, const TopkRouterBackward& args) {
  const auto [B, T, X] = args.logits.shape<3>("logits: (B, T, X)");
  const int64_t k = args.options.top_k;
  const DType dtype = args.logits.dtype;
  check_options(args.options, X);
  expect("dweights", args.dweights, {B, T, k}, dtype, ctx.device);
  expect("logits", args.logits, {B, T, X}, dtype, ctx.device);
  expect("experts", args.experts, {B, T, k}, DType::i32, ctx.device);
  expect("dlogits", args.dlogits, {B, T, X}, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::topk_router_backward(ctx, args);
    fail_no_cuda("topk_router_backward");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::topk_router_backward<Float>(args); });
}

void router_statistics(const Context& ctx, const RouterStatistics& args) {
  const auto [B, T, X] = args.logits.shape<3>("logits: (B, T, X)");
  const DType dtype = args.logits.dtype;
  check_options(args.options, X);
  expect("logits", args.logits, {B, T, X}, dtype, ctx.device);
  expect("experts", args.experts, {B, T, args.options.top_k}, DType::i32, ctx.device);
  expect("counts", args.counts, {B, X}, dtype, ctx.device);
  expect("mass", args.mass, {B, X}, dtype, ctx.device);
  expect("z", args.z, {B}, dtype, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const RowBlocks blocks = ctx.device.is_cuda() ? cuda::statistics_blocks(B, T) : RowBlocks(T);
  const TensorView partial = ctx.scratch->alloc({B, blocks.count, 2 * X + 1}, DType::f64);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::router_statistics(ctx, args, partial);
    fail_no_cuda("router_statistics");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::router_statistics<Float>(args, partial); });
}

void router_report(const Context& ctx, const RouterReport& args) {
  const auto [B, X] = args.counts.shape<2>("counts: (B, X)");
  const DType dtype = args.counts.dtype;
  expect("counts_here", args.counts_here, {B, X}, dtype, ctx.device);
  expect("counts", args.counts, {B, X}, dtype, ctx.device);
  expect("mass", args.mass, {B, X}, dtype, ctx.device);
  expect("z", args.z, {B}, dtype, ctx.device);
  expect("losses", args.losses, {2}, DType::f64, ctx.device);
  if (args.loads) expect("loads", args.loads, {X}, DType::f64, ctx.device);
  SLUICE_CHECK(args.row_tokens > 0 && args.top_k > 0, "rows of ", args.row_tokens, " tokens, top ",
               args.top_k);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::router_report(ctx, args);
    fail_no_cuda("router_report");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::router_report<Float>(args); });
}

void router_loss_backward(const Context& ctx, const RouterLossBackward& args) {
  const auto [B, T, X] = args.logits.shape<3>("logits: (B, T, X)");
  const DType dtype = args.logits.dtype;
  check_options(args.options, X);
  SLUICE_CHECK(args.row_tokens >= T, "a row has at least this rank's ", T, " tokens, got ",
               args.row_tokens);
  expect("logits", args.logits, {B, T, X}, dtype, ctx.device);
  expect("counts", args.counts, {B, X}, dtype, ctx.device);
  expect("dlogits", args.dlogits, {B, T, X}, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::router_loss_backward(ctx, args);
    fail_no_cuda("router_loss_backward");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::router_loss_backward<Float>(args); });
}

}  // namespace sluice
