#include "kernels/token_permute/token_permute.h"

#include <limits>

#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"
#include "kernels/gemm/gemm.h"
#include "kernels/token_permute/token_permute_cpu.h"
#include "kernels/token_permute/token_permute_cuda.h"

namespace sluice {
namespace {

void check_experts(const ConstTensorView& experts, int64_t X) {
  const int64_t k = experts.row_size();
  for (int64_t t = 0; t < experts.rows(); ++t) {
    const int32_t* const chosen = experts.row<int32_t>(t);
    for (int64_t j = 0; j < k; ++j) {
      SLUICE_CHECK(chosen[j] >= 0 && chosen[j] < X, "expert ", chosen[j], " of token ", t,
                   " is outside [0, ", X, ")");
    }
  }
}

// dx without the router's part.
void sum_choices(const Context& ctx, const TokenPermuteBackward& args) {
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::token_permute_backward(ctx, args);
    fail_no_cuda("token_permute_backward");
  }
  dispatch_float(args.dx.dtype, [&]<class Float>() { cpu::token_permute_backward<Float>(args); });
}

}  // namespace

void token_index(const Context& ctx, const TokenIndex& args) {
  const auto [B, T, k] = args.experts.shape<3>("experts: (B, T, k)");
  SLUICE_CHECK(args.offsets.dims.rank == 1 && args.offsets.numel() >= 2, "offsets: (X + 1), got ",
               to_string(args.offsets.dims));
  SLUICE_CHECK(args.capacity >= 0, "capacity is 0 (all) or positive, got ", args.capacity);
  SLUICE_CHECK(B * T * k <= std::numeric_limits<int32_t>::max(), "slots are i32, got ", B * T * k,
               " entries: lower micro_batch");
  const int64_t X = args.offsets.numel() - 1;
  expect("experts", args.experts, {B, T, k}, DType::i32, ctx.device);
  expect("slot", args.slot, {B, T, k}, DType::i32, ctx.device);
  expect("offsets", args.offsets, {X + 1}, DType::i64, ctx.device);
  if (args.before) expect("before", args.before, {B, X}, args.before.dtype, ctx.device);
  if (args.kept) expect("kept", args.kept, {X}, DType::i32, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  if (ctx.device.is_cuda()) {
    const int64_t pieces = B * cuda::index_pieces(B, T * k).count;
    const TensorView starts = ctx.scratch->alloc({pieces, X}, DType::i32);
    const TensorView row_starts = ctx.scratch->alloc({B, X}, DType::i32);
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::token_index(ctx, args, starts, row_starts);
    fail_no_cuda("token_index");
  }
  const TensorView cursor = ctx.scratch->alloc({X}, DType::i64);
  const TensorView taken = ctx.scratch->alloc({X}, DType::i64);
  if (ctx.counting()) return;
  check_experts(args.experts, X);
  cpu::token_index(args, cursor, taken);
}

void token_permute_forward(const Context& ctx, const TokenPermuteForward& args) {
  const auto [B, T, k] = args.slot.shape<3>("slot: (B, T, k)");
  const DType dtype = args.x.dtype;
  const int64_t D = args.x.row_size();
  expect("slot", args.slot, {B, T, k}, DType::i32, ctx.device);
  expect("x", args.x, {B, T, D}, dtype, ctx.device);
  expect("rows", args.rows, {B * T * k, D}, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::token_permute_forward(ctx, args);
    fail_no_cuda("token_permute_forward");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::token_permute_forward<Float>(args); });
}

void token_permute_backward(const Context& ctx, const TokenPermuteBackward& args) {
  const auto [B, T, k] = args.slot.shape<3>("slot: (B, T, k)");
  const DType dtype = args.dx.dtype;
  const int64_t D = args.dx.row_size();
  expect("slot", args.slot, {B, T, k}, DType::i32, ctx.device);
  expect("dx", args.dx, {B, T, D}, dtype, ctx.device);
  expect("drows", args.drows, {B * T * k, D}, dtype, ctx.device);
  if (!args.dlogits) return sum_choices(ctx, args);
  const int64_t X = args.dlogits.row_size();
  expect("dlogits", args.dlogits, {B, T, X}, stat_dtype(dtype), ctx.device);
  expect("router", args.router, {X, D}, stat_dtype(dtype), ctx.device);
  if (ctx.device.is_cuda() && dtype == DType::bf16 && X <= cuda::kMostRouted) {
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::token_permute_router_backward(ctx, args);
  }
  sum_choices(ctx, args);
  gemm(ctx, {.a = args.dlogits.matrix(), .b = args.router, .c = args.dx.matrix(), .beta = 1});
}

void token_unpermute_forward(const Context& ctx, const TokenUnpermuteForward& args) {
  const auto [B, T, k] = args.slot.shape<3>("slot: (B, T, k)");
  const DType dtype = args.y.dtype;
  const int64_t D = args.y.row_size();
  expect("slot", args.slot, {B, T, k}, DType::i32, ctx.device);
  expect("y", args.y, {B, T, D}, dtype, ctx.device);
  expect("rows", args.rows, {B * T * k, D}, dtype, ctx.device);
  expect("weights", args.weights, {B, T, k}, stat_dtype(dtype), ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::token_unpermute_forward(ctx, args);
    fail_no_cuda("token_unpermute_forward");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::token_unpermute_forward<Float>(args); });
}

void token_unpermute_backward(const Context& ctx, const TokenUnpermuteBackward& args) {
  const auto [B, T, k] = args.slot.shape<3>("slot: (B, T, k)");
  const DType dtype = args.dy.dtype;
  const int64_t D = args.dy.row_size();
  expect("slot", args.slot, {B, T, k}, DType::i32, ctx.device);
  expect("dy", args.dy, {B, T, D}, dtype, ctx.device);
  expect("rows", args.rows, {B * T * k, D}, dtype, ctx.device);
  expect("weights", args.weights, {B, T, k}, stat_dtype(dtype), ctx.device);
  expect("drows", args.drows, {B * T * k, D}, dtype, ctx.device);
  expect("dweights", args.dweights, {B, T, k}, stat_dtype(dtype), ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::token_unpermute_backward(ctx, args);
    fail_no_cuda("token_unpermute_backward");
  }
  dispatch_float(dtype, [&]<class Float>() { cpu::token_unpermute_backward<Float>(args); });
}

std::string describe_permutation(Device device, DType dtype, int64_t D) {
  if (device.is_cpu() || dtype != DType::bf16 || whole_packs(D, dtype)) return "";
  constexpr double kPlain = 2;  // D 2052 beside 2048
  return on_plain_kernels(concat("rows of ", D, " go to experts"), kPlain, "multiples of 8");
}

}  // namespace sluice
