#include "kernels/gemm/gemm.h"

#include "kernels/core/dispatch.h"
#include "kernels/gemm/gemm_cpu.h"
#include "kernels/gemm/gemm_cuda.h"

namespace sluice {

namespace {

// BLAS takes row strides of at least a row's length, and views may only overlap a row by mistake.
void expect_rows(const char* name, const ConstTensorView& view) {
  SLUICE_CHECK(view.rows() <= 1 || view.row_stride >= view.row_size(), name, ": ",
               to_string(view.dims), " with rows ", view.row_stride, " apart overlaps itself");
}

// Ascending from 0, within the rows. For offsets on the host alone: nobody waits for a GPU's.
void expect_offsets(const ConstTensorView& offsets, int64_t rows) {
  const int64_t* const at = offsets.as<int64_t>();
  SLUICE_CHECK(at[0] == 0, "offsets start at 0, got ", at[0]);
  for (int64_t group = 0; group + 1 < offsets.numel(); ++group) {
    SLUICE_CHECK(at[group] <= at[group + 1], "offsets ascend, got ", at[group], " before ",
                 at[group + 1], " at group ", group);
  }
  SLUICE_CHECK(at[offsets.numel() - 1] <= rows, "offsets end at ", at[offsets.numel() - 1],
               ", beyond the ", rows, " rows");
}

void expect_dtypes(const Context& ctx, const Gemm& args) {
  const DType a = args.a.dtype, b = args.b.dtype, c = args.c.dtype;
  const auto storable = [](DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; };
  if (ctx.device.is_cuda()) {
    SLUICE_CHECK(storable(a) && storable(b) && storable(c),
                 "on a GPU a, b and c are f32 or bf16, got ", name_of(a), ", ", name_of(b), " and ",
                 name_of(c));
    return;
  }
  SLUICE_CHECK(a == b && a == c, "on the CPU a, b and c have one dtype, got ", name_of(a), ", ",
               name_of(b), " and ", name_of(c));
}

// f32 operands as bf16 terms in scratch; bf16 ones as they are.
struct Terms {
  ConstTensorView whole;
  TensorView split = {};

  Terms(const Context& ctx, const ConstTensorView& operand, int64_t count) : whole(operand) {
    if (operand.dtype == DType::bf16) return;
    split =
        ctx.scratch->alloc_padded_rows({count * operand.rows(), operand.row_size()}, DType::bf16);
    if constexpr (kBuiltWithCuda) {
      if (!ctx.counting()) cuda::split_into_bf16(ctx, operand, count, split);
    }
  }
  ConstTensorView term(int64_t index) const {
    return split ? split.row_range(index * whole.rows(), whole.rows()) : whole;
  }
};

void gemm_on_gpu(const Context& ctx, const Gemm& args) {
  const ArenaScope scope(*ctx.scratch);
  const TensorView workspace = ctx.scratch->alloc({cuda::kGemmWorkspaceBytes}, DType::u8);
  const auto product = [&](const Gemm& part) {
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::gemm(ctx, part, workspace);
    fail_no_cuda("gemm");
  };
  const bool to_bf16 = args.c.dtype == DType::bf16;
  const DType operands = args.a.dtype;
  if (operands == args.b.dtype && (operands == DType::bf16 || !to_bf16)) return product(args);
  const int64_t count = to_bf16 ? 1 : 3;
  const Terms a(ctx, args.a, count), b(ctx, args.b, count);
  Gemm part = args;
  for (int64_t index = 0; index < count; ++index) {
    part.a = a.term(index);
    part.b = b.term(index);
    product(part);
    part.beta = 1;
  }
}

}  // namespace

void gemm(const Context& ctx, const Gemm& args) {
  const auto [M, N] = args.c.shape<2>("c: (M, N)");
  const auto [a_rows, a_columns] = args.a.shape<2>("a: (M, K), or (K, M) transposed");
  const int64_t K = args.transpose_a ? a_rows : a_columns;
  expect_dtypes(ctx, args);
  expect("a", args.a, args.transpose_a ? Dims{K, M} : Dims{M, K}, args.a.dtype, ctx.device);
  expect("b", args.b, args.transpose_b ? Dims{N, K} : Dims{K, N}, args.b.dtype, ctx.device);
  expect("c", args.c, {M, N}, args.c.dtype, ctx.device);
  expect_rows("a", args.a), expect_rows("b", args.b), expect_rows("c", args.c);
  if (ctx.device.is_cuda()) return gemm_on_gpu(ctx, args);
  if (ctx.counting()) return;
  dispatch_float(args.a.dtype, [&]<class T>() { cpu::gemm<T>(args); });
}

void grouped_gemm(const Context& ctx, const GroupedGemm& args) {
  const auto [rows, K] = args.a.shape<2>("a: (rows, K)");
  const auto [c_rows, N] = args.c.shape<2>("c: (rows, N)");
  const auto [X] = args.offsets.shape<1>("offsets: (X + 1)");
  const DType dtype = args.a.dtype;
  SLUICE_CHECK(X >= 2, "offsets: (X + 1) with at least one group, got ", X);
  expect("c", args.c, {rows, N}, dtype, ctx.device);
  expect("weights", args.weights, args.transpose_weights ? Dims{X - 1, N, K} : Dims{X - 1, K, N},
         dtype, ctx.device);
  expect("offsets", args.offsets, {X}, DType::i64, ctx.device);
  expect_rows("a", args.a), expect_rows("weights", args.weights), expect_rows("c", args.c);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::grouped_gemm(ctx, args);
    fail_no_cuda("grouped_gemm");
  }
  expect_offsets(args.offsets, rows);
  dispatch_float(dtype, [&]<class T>() { cpu::grouped_gemm<T>(args); });
}

void grouped_gemm_weight(const Context& ctx, const GroupedGemmWeight& args) {
  const auto [rows, M] = args.a.shape<2>("a: (rows, M)");
  const auto [b_rows, N] = args.b.shape<2>("b: (rows, N)");
  const auto [X] = args.offsets.shape<1>("offsets: (X + 1)");
  const DType dtype = args.a.dtype;
  SLUICE_CHECK(X >= 2, "offsets: (X + 1) with at least one group, got ", X);
  SLUICE_CHECK(args.beta == 0 || args.beta == 1, "beta: 0 or 1, got ", args.beta);
  expect("b", args.b, {rows, N}, dtype, ctx.device);
  expect("weights", args.weights, {X - 1, M, N}, stat_dtype(dtype), ctx.device);
  expect("offsets", args.offsets, {X}, DType::i64, ctx.device);
  expect_rows("a", args.a), expect_rows("b", args.b), expect_rows("weights", args.weights);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::grouped_gemm_weight(ctx, args);
    fail_no_cuda("grouped_gemm_weight");
  }
  expect_offsets(args.offsets, rows);
  dispatch_float(dtype, [&]<class T>() { cpu::grouped_gemm_weight<T>(args); });
}

}  // namespace sluice
