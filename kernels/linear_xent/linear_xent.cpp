#include "kernels/linear_xent/linear_xent.h"

#include <algorithm>

#include "kernels/core/dispatch.h"
#include "kernels/core/row_blocks.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_xent/linear_xent_cpu.h"

namespace sluice {
namespace {

void check_targets(const ConstTensorView& targets, int64_t V) {
  for (int64_t row = 0; row < targets.rows(); ++row) {
    const int32_t* const ids = targets.row<int32_t>(row);
    for (int64_t t = 0; t < targets.row_size(); ++t) {
      if (ids[t] >= -1 && ids[t] < V) continue;
      throw DataError(concat("target ", ids[t], " at row ", row, ", position ", t,
                             " is outside the model's vocabulary of ", V,
                             " (-1 means none): the data was made with another tokenizer, or "
                             "vocab_size is wrong"));
    }
  }
}

void check_arguments(const Context& ctx, const LinearXentForwardBackward& args) {
  const auto [B, T, D] = args.hidden.shape<3>("hidden: (B, T, D)");
  const auto [V, weight_D] = args.weight.shape<2>("weight: (V, D)");
  const DType dtype = args.hidden.dtype;
  SLUICE_CHECK(weight_D == D, "weight: (V, ", D, ") as hidden has it, got ",
               to_string(args.weight.dims));
  SLUICE_CHECK(args.chunk_bytes > 0, "chunk_bytes must be positive, got ", args.chunk_bytes);
  expect("hidden", args.hidden, {B, T, D}, dtype, ctx.device);
  expect("weight", args.weight, {V, D}, dtype, ctx.device);
  expect("targets", args.targets, {B, T}, DType::i32, ctx.device);
  if (args.weights) expect("weights", args.weights, {B, T}, stat_dtype(dtype), ctx.device);
  expect("losses", args.losses, {B, T}, stat_dtype(dtype), ctx.device);
  expect("loss_sum", args.loss_sum, {1}, DType::f64, ctx.device);
}

// The whole operator; without dhidden it is the forward alone.
void run(const Context& ctx, const LinearXentForwardBackward& args) {
  check_arguments(ctx, args);
  const bool with_gradient = bool(args.dhidden);
  const DType dtype = args.hidden.dtype;
  const int64_t tokens = args.hidden.rows();
  const int64_t V = args.weight.dim(0);
  const int64_t most = std::max<int64_t>(1, args.chunk_bytes / (V * int64_t(size_of(dtype))));
  const RowBlocks chunks(tokens, (tokens + most - 1) / most);
  const int64_t largest = (tokens + chunks.count - 1) / chunks.count;

  const ArenaScope scope(*ctx.scratch);
  const TensorView all_logits = ctx.scratch->alloc_padded_rows({largest, V}, dtype);
  if (!ctx.counting()) {
    if (!ctx.device.is_cpu()) fail_no_cuda("linear_xent");
    check_targets(args.targets, V);
  }
  const ConstTensorView hidden = args.hidden.matrix();
  // In counting mode too: the products count their own scratch.
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t first = chunks.begin(chunk);
    const int64_t count = chunks.end(chunk) - first;
    const ConstTensorView x = hidden.row_range(first, count);
    const TensorView logits = all_logits.row_range(0, count);
    gemm(ctx, {.a = x, .b = args.weight, .c = logits, .transpose_b = true});
    if (!ctx.counting()) {
      const cpu::XentChunk rows{.logits = logits,
                                .first = first,
                                .targets = args.targets,
                                .weights = args.weights,
                                .losses = args.losses,
                                .with_gradient = with_gradient,
                                .loss_scale = args.loss_scale};
      dispatch_float(dtype, [&]<class T>() { cpu::xent_chunk<T>(rows); });
    }
    if (!with_gradient) continue;
    gemm(ctx, {.a = logits, .b = args.weight, .c = args.dhidden.matrix().row_range(first, count)});
    gemm(ctx, {.a = logits, .b = x, .c = args.dweight, .transpose_a = true, .beta = 1});
  }
  if (ctx.counting()) return;
  double& sum = args.loss_sum.as<double>()[0];
  dispatch_float(dtype, [&]<class T>() { sum = cpu::xent_loss_sum<T>(args.losses); });
}

}  // namespace

void linear_xent_forward(const Context& ctx, const LinearXentForward& args) {
  run(ctx, {.hidden = args.hidden,
            .weight = args.weight,
            .targets = args.targets,
            .weights = args.weights,
            .losses = args.losses,
            .loss_sum = args.loss_sum,
            .chunk_bytes = args.chunk_bytes});
}

void linear_xent_forward_backward(const Context& ctx, const LinearXentForwardBackward& args) {
  expect("dhidden", args.dhidden, args.hidden.dims, args.hidden.dtype, ctx.device);
  expect("dweight", args.dweight, args.weight.dims, stat_dtype(args.hidden.dtype), ctx.device);
  run(ctx, args);
}

}  // namespace sluice
