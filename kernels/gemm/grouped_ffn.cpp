#include "kernels/gemm/grouped_ffn.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_gemm_wgmma.h"

namespace sluice {
namespace {

// U of F.
int64_t up_width(Activation kind, int64_t F) { return kind == Activation::swiglu ? 2 * F : F; }

// A part of (rows, U): the gate or the only one, and what is gated, if anything is.
template <class View>
View gate_of(const View& up, int64_t F) {
  return up.columns(0, {F});
}
template <class View>
View gated_of(const View& up, int64_t F) {
  return up.dim(1) == F ? View{} : up.columns(F, {F});
}

int64_t experts_of(const ConstTensorView& offsets) {
  if (!offsets) return 1;
  const auto [ends] = offsets.shape<1>("offsets: (X + 1)");
  return ends - 1;
}

// C = A op(weights), of every group or of all rows.
void product(const Context& ctx, const GroupedGemm& args) {
  if (args.offsets) return grouped_gemm(ctx, args);
  gemm(ctx, {.a = args.a,
             .b = args.weights.slice(0),
             .c = args.c,
             .transpose_b = args.transpose_weights});
}

void activate(const Context& ctx, Activation kind, const ConstTensorView& up,
              const TensorView& hidden) {
  const int64_t F = hidden.dim(1);
  activation_forward(ctx, {.kind = kind, .x = gate_of(up, F), .up = gated_of(up, F), .y = hidden});
}

}  // namespace

void grouped_up(const Context& ctx, const GroupedUp& args) {
  const auto [rows, D] = args.rows.shape<2>("rows: (rows, D)");
  const auto [hidden_rows, F] = args.hidden.shape<2>("hidden: (rows, F)");
  const DType dtype = args.rows.dtype;
  const int64_t U = up_width(args.kind, F);
  expect("hidden", args.hidden, {rows, F}, dtype, ctx.device);
  expect("up", args.up, {rows, U}, dtype, ctx.device);
  expect("weights", args.weights, {experts_of(args.offsets), U, D}, dtype, ctx.device);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device.is_cuda() && !ctx.counting() && cuda::fits_grouped_ffn(args))
      return cuda::grouped_up_wgmma(ctx, args);
  }
  product(ctx, {.a = args.rows,
                .weights = args.weights,
                .c = args.up,
                .offsets = args.offsets,
                .transpose_weights = true});
  activate(ctx, args.kind, args.up, args.hidden);
}

void grouped_down_backward(const Context& ctx, const GroupedDownBackward& args) {
  const auto [rows, D] = args.dout.shape<2>("dout: (rows, D)");
  const auto [hidden_rows, F] = args.hidden.shape<2>("hidden: (rows, F)");
  const DType dtype = args.dout.dtype;
  const Dims up_dims{rows, up_width(args.kind, F)};
  expect("hidden", args.hidden, {rows, F}, dtype, ctx.device);
  expect("up", args.up, up_dims, dtype, ctx.device);
  expect("dup", args.dup, up_dims, dtype, ctx.device);
  expect("weights", args.weights, {experts_of(args.offsets), D, F}, dtype, ctx.device);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device.is_cuda() && !ctx.counting() && cuda::fits_grouped_ffn(args))
      return cuda::grouped_down_backward_wgmma(ctx, args);
  }
  product(ctx,
          {.a = args.dout, .weights = args.weights, .c = args.hidden, .offsets = args.offsets});
  activation_backward(ctx, {.kind = args.kind,
                            .dy = args.hidden,
                            .x = gate_of(args.up, F),
                            .up = gated_of(args.up, F),
                            .dx = gate_of(args.dup, F),
                            .dup = gated_of(args.dup, F)});
  activate(ctx, args.kind, args.up, args.hidden);
}

std::string describe_experts(Device device, DType dtype, int64_t D, int64_t F) {
  if (device.is_cpu() || dtype != DType::bf16 || whole_packs({D, F}, dtype)) return "";
  // D 1028 beside 1024, at F 2048; and F 2052 beside 2048, where up still takes tensor cores.
  constexpr double kPlain = 27, kPlainDown = 10;
  const double factor = whole_packs({D, 2 * F}, dtype) ? kPlainDown : kPlain;
  return on_plain_kernels(concat("experts of ", D, " to ", F, " run"), factor, "multiples of 8");
}

}  // namespace sluice
