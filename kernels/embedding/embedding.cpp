#include "kernels/embedding/embedding.h"

#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"
#include "kernels/embedding/embedding_cpu.h"
#include "kernels/embedding/embedding_cuda.h"

namespace sluice {
namespace {

void check_tokens(const ConstTensorView& tokens, int64_t V) {
  for (int64_t row = 0; row < tokens.rows(); ++row) {
    const int32_t* const ids = tokens.row<int32_t>(row);
    for (int64_t t = 0; t < tokens.row_size(); ++t) {
      if (ids[t] >= 0 && ids[t] < V) continue;
      throw DataError(concat("token ", ids[t], " at row ", row, ", position ", t,
                             " is outside the model's vocabulary of ", V,
                             ": the data was made with another tokenizer, or vocab_size is wrong"));
    }
  }
}

}  // namespace

void embedding_forward(const Context& ctx, const EmbeddingForward& args) {
  const auto [B, T] = args.tokens.shape<2>("tokens: (B, T)");
  const auto [V, D] = args.weight.shape<2>("weight: (V, D)");
  expect("tokens", args.tokens, {B, T}, DType::i32, ctx.device);
  const bool widened =
      args.weight.dtype == DType::bf16 && args.y.dtype == DType::f32 && ctx.device.is_cuda();
  expect("weight", args.weight, {V, D}, widened ? DType::bf16 : args.y.dtype, ctx.device);
  expect("y", args.y, {B, T, D}, args.y.dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::embedding_forward(ctx, args);
    fail_no_cuda("embedding_forward");
  }
  check_tokens(args.tokens, V);
  dispatch_float(args.y.dtype, [&]<class T>() { cpu::embedding_forward<T>(args); });
}

void embedding_backward(const Context& ctx, const EmbeddingBackward& args) {
  const auto [B, T] = args.tokens.shape<2>("tokens: (B, T)");
  const auto [V, D] = args.dweight.shape<2>("dweight: (V, D)");
  expect("tokens", args.tokens, {B, T}, DType::i32, ctx.device);
  expect("dy", args.dy, {B, T, D}, args.dy.dtype, ctx.device);
  expect("dweight", args.dweight, {V, D}, stat_dtype(args.dy.dtype), ctx.device);
  const ArenaScope scope(*ctx.scratch);
  if (ctx.device.is_cuda()) {
    const cuda::EmbeddingWork work(*ctx.scratch, B * T, D);
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::embedding_backward(ctx, args, work);
    fail_no_cuda("embedding_backward");
  }
  if (ctx.counting()) return;
  check_tokens(args.tokens, V);
  dispatch_float(args.dy.dtype, [&]<class T>() { cpu::embedding_backward<T>(args); });
}

std::string describe_embedding(Device device, DType dtype, int64_t D) {
  if (device.is_cpu() || dtype != DType::bf16 || whole_packs(D, dtype)) return "";
  constexpr double kPlain = 1.7;  // D 2052 beside 2048
  return on_plain_kernels(concat("an embedding of ", D, " runs"), kPlain, "multiples of 8");
}

}  // namespace sluice
