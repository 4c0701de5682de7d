#include "kernels/linear_xent/linear_xent.h"

#include <algorithm>

#include "kernels/core/dispatch.h"
#include "kernels/core/row_blocks.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_xent/linear_xent_cpu.h"
#include "kernels/linear_xent/linear_xent_cuda.h"

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
  SLUICE_CHECK(args.chunk_bytes >= 0, "chunk_bytes is 0 or positive, got ", args.chunk_bytes);
  expect("hidden", args.hidden, {B, T, D}, dtype, ctx.device);
  expect("weight", args.weight, {V, D}, dtype, ctx.device);
  expect("targets", args.targets, {B, T}, DType::i32, ctx.device);
  if (args.weights) expect("weights", args.weights, {B, T}, stat_dtype(dtype), ctx.device);
  expect("losses", args.losses, {B, T}, stat_dtype(dtype), ctx.device);
  expect("loss_sum", args.loss_sum, {1}, DType::f64, ctx.device);
  if (args.step_scale) expect("step_scale", args.step_scale, {1}, DType::f64, ctx.device);
}

// Tokens in chunks of at most chunk_bytes of logits.
struct Chunks {
  int64_t tokens = 0;
  int64_t size = 0;  // of all but the last
  int64_t count() const { return (tokens + size - 1) / size; }
  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return std::min(tokens, (chunk + 1) * size); }

  Chunks(const Context& ctx, const LinearXentForwardBackward& args) : tokens(args.hidden.rows()) {
    const int64_t row_bytes = args.weight.dim(0) * int64_t(size_of(args.hidden.dtype));
    const int64_t fallback = ctx.device.is_cuda() ? kXentChunkBytesOnGpu : kXentChunkBytes;
    const int64_t bytes = args.chunk_bytes > 0 ? args.chunk_bytes : fallback;
    const int64_t most = std::max<int64_t>(1, bytes / row_bytes);
    const int64_t even = RowBlocks(tokens, (tokens + most - 1) / most).count;
    size = std::max<int64_t>(1, (tokens + even - 1) / even);
    // Whole tiles of the products, and a power of two of them: the product for dhidden has few.
    constexpr int64_t kTiles = 1024;
    if (ctx.device.is_cuda() && most >= kTiles) size = std::min(tokens, most / kTiles * kTiles);
  }
};

void rows_of_chunk(const Context& ctx, const XentChunk& chunk) {
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::xent_chunk(ctx, chunk);
    fail_no_cuda("linear_xent");
  }
  dispatch_float(chunk.logits.dtype, [&]<class T>() { cpu::xent_chunk<T>(chunk); });
}

void sum_losses(const Context& ctx, const LinearXentForwardBackward& args) {
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::xent_loss_sum(ctx, args.losses, args.loss_sum);
    fail_no_cuda("linear_xent");
  }
  double& sum = args.loss_sum.as<double>()[0];
  dispatch_float(args.losses.dtype, [&]<class T>() { sum = cpu::xent_loss_sum<T>(args.losses); });
}

// The whole operator; without dhidden it is the forward alone.
void run(const Context& ctx, const LinearXentForwardBackward& args) {
  check_arguments(ctx, args);
  const bool with_gradient = bool(args.dhidden);
  const int64_t V = args.weight.dim(0);
  const Chunks chunks(ctx, args);
  const ArenaScope scope(*ctx.scratch);
  const TensorView all_logits =
      ctx.scratch->alloc_padded_rows({std::min(chunks.size, chunks.tokens), V}, args.hidden.dtype);
  if (!ctx.counting() && ctx.device.is_cpu()) check_targets(args.targets, V);
  const ConstTensorView hidden = args.hidden.matrix();
  // In counting mode too: the products count their own scratch.
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    const int64_t first = chunks.begin(chunk);
    const int64_t count = chunks.end(chunk) - first;
    const ConstTensorView x = hidden.row_range(first, count);
    const TensorView logits = all_logits.row_range(0, count);
    gemm(ctx, {.a = x, .b = args.weight, .c = logits, .transpose_b = true});
    rows_of_chunk(ctx, {.logits = logits,
                        .first = first,
                        .targets = args.targets,
                        .weights = args.weights,
                        .losses = args.losses,
                        .with_gradient = with_gradient,
                        .loss_scale = args.loss_scale,
                        .step_scale = args.step_scale});
    if (!with_gradient) continue;
    gemm(ctx, {.a = logits, .b = args.weight, .c = args.dhidden.matrix().row_range(first, count)});
    gemm(ctx, {.a = logits, .b = x, .c = args.dweight, .transpose_a = true, .beta = 1});
  }
  sum_losses(ctx, args);
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
