#include "kernels/attention/attention.h"

#include <array>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_cudnn.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/plain_path.h"

namespace sluice {
namespace {

// What forward and backward share.
template <class Args>
void check_inputs(const Context& ctx, const Args& args) {
  const auto [B, T, Hq, hd] = args.q.template shape<4>("q: (B, T, Hq, hd)");
  const auto [key_rows, S, Hkv, key_width] = args.k.template shape<4>("k: (B, S, Hkv, hd)");
  const DType dtype = args.q.dtype;
  SLUICE_CHECK(B > 0 && T > 0 && hd > 0, "q is empty: ", to_string(args.q.dims));
  SLUICE_CHECK(S > 0, "k is empty: ", to_string(args.k.dims));
  SLUICE_CHECK(Hkv > 0 && Hq > 0 && Hq % Hkv == 0, "key-value heads must divide query heads, got ",
               Hkv, " and ", Hq);
  SLUICE_CHECK(args.window >= 0, "window must not be negative, got ", args.window);
  expect("q", args.q, args.q.dims, dtype, ctx.device);
  expect("k", args.k, {B, S, Hkv, hd}, dtype, ctx.device);
  expect("v", args.v, {B, S, Hkv, hd}, dtype, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
  expect("y", args.y, args.q.dims, dtype, ctx.device);
  if (args.lse) expect("lse", args.lse, {B, T, Hq}, stat_dtype(dtype), ctx.device);
}

// What cuDNN's kernels need; nothing where they do not run.
template <class Args>
TensorView cudnn_scratch(const Context& ctx, const Args& args) {
  if constexpr (kBuiltWithCuda) {
    if (args.backend != AttentionBackend::cudnn || !ctx.device.is_cuda()) return {};
    const std::optional<int64_t> bytes = cuda::cudnn_scratch_bytes(ctx.device, args);
    if (bytes) return ctx.scratch->alloc({*bytes}, DType::u8);
  }
  return {};
}

}  // namespace

std::span<const char* const> enum_names(AttentionBackend) {
  static constexpr std::array kNames = {"own", "cudnn"};
  return kNames;
}

void attention_forward(const Context& ctx, const AttentionForward& args) {
  check_inputs(ctx, args);
  const ArenaScope scope(*ctx.scratch);
  const TensorView cudnn = cudnn_scratch(ctx, args);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) {
      return cudnn ? cuda::attention_forward_cudnn(ctx, args, cudnn)
                   : cuda::attention_forward(ctx, args);
    }
    fail_no_cuda("attention_forward");
  }
  dispatch_float(args.q.dtype, [&]<class Real>() { cpu::attention_forward<Real>(args); });
}

void attention_merge(const Context& ctx, const AttentionMerge& args) {
  const auto [B, T, Hq, hd] = args.y.shape<4>("y: (B, T, Hq, hd)");
  const DType dtype = args.y.dtype;
  expect("y", args.y, {B, T, Hq, hd}, dtype, ctx.device);
  expect("part_y", args.part_y, {B, T, Hq, hd}, dtype, ctx.device);
  expect("lse", args.lse, {B, T, Hq}, stat_dtype(dtype), ctx.device);
  expect("part_lse", args.part_lse, {B, T, Hq}, stat_dtype(dtype), ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::attention_merge(ctx, args);
    fail_no_cuda("attention_merge");
  }
  dispatch_float(dtype, [&]<class Real>() { cpu::attention_merge<Real>(args); });
}

void attention_backward(const Context& ctx, const AttentionBackward& args) {
  check_inputs(ctx, args);
  const DType dtype = args.q.dtype;
  SLUICE_CHECK(bool(args.lse), "the backward needs the forward's lse");
  expect("dy", args.dy, args.q.dims, dtype, ctx.device);
  expect("dq", args.dq, args.q.dims, dtype, ctx.device);
  expect("dk", args.dk, args.k.dims, dtype, ctx.device);
  expect("dv", args.dv, args.v.dims, dtype, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const auto [B, T, Hq] = args.lse.shape<3>("lse: (B, T, Hq)");
  const TensorView cudnn = cudnn_scratch(ctx, args);
  const Dims stats_dims = ctx.device.is_cuda() ? Dims{B, Hq, T, 4} : Dims{B, T, Hq};
  const TensorView stats = cudnn ? TensorView() : ctx.scratch->alloc(stats_dims, stat_dtype(dtype));
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) {
      return cudnn ? cuda::attention_backward_cudnn(ctx, args, cudnn)
                   : cuda::attention_backward(ctx, args, stats);
    }
    fail_no_cuda("attention_backward");
  }
  dispatch_float(dtype, [&]<class Real>() { cpu::attention_backward<Real>(args, stats); });
}

namespace {

std::string describe_own(const ConstTensorView& q) {
  if (q.dtype != DType::bf16 || cuda::on_tensor_cores(q.dim(3))) return "";
  constexpr double kPlainColumn = 0.28;  // head_dim 60 beside 64, 124 and 256 beside 128
  return on_plain_kernels(concat("attention of head_dim ", q.dim(3), " runs"),
                          kPlainColumn * double(q.dim(3)),
                          concat("multiples of 8 up to ", cuda::kMaxTensorHeadDim));
}

}  // namespace

std::string describe_kernels(Device device, const AttentionForward& forward,
                             const AttentionBackward& backward) {
  if (device.is_cpu()) return "";
  const std::string own = describe_own(forward.q);
  if (forward.backend == AttentionBackend::own) return own;
  std::string absence = "this build has no CUDA";
  if constexpr (kBuiltWithCuda) {
    absence = cuda::why_no_cudnn(device);
    if (absence.empty()) {
      const bool takes_forward = cuda::cudnn_scratch_bytes(device, forward).has_value();
      const bool takes_backward = cuda::cudnn_scratch_bytes(device, backward).has_value();
      const std::string name = "cuDNN " + cuda::cudnn_version();
      if (takes_forward && takes_backward) return name;
      if (takes_forward) {
        return name +
               " forward, our own kernels backward: in a fixed order of sums cuDNN's takes "
               "too much memory for rows this long";
      }
      absence =
          name + " takes bf16, whole rows of one rank, and head_dim a multiple of 8 up to 128";
    }
  }
  return "backend: cudnn is asked for, our own kernels run: " + absence +
         (own.empty() ? "" : "; " + own);
}

}  // namespace sluice
