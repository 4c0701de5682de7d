#include "kernels/gemm/gemm.h"

#include "kernels/core/dispatch.h"
#include "kernels/gemm/gemm_cpu.h"

namespace sluice {

namespace {

// BLAS takes row strides of at least a row's length, and views may only overlap a row by mistake.
void expect_rows(const char* name, const ConstTensorView& view) {
  SLUICE_CHECK(view.rows() <= 1 || view.row_stride >= view.row_size(), name, ": ",
               to_string(view.dims), " with rows ", view.row_stride, " apart overlaps itself");
}

// Ascending from 0, within the rows. Read on the host: a GPU build checks on the device.
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

}  // namespace

void gemm(const Context& ctx, const Gemm& args) {
  const auto [M, N] = args.c.shape<2>("c: (M, N)");
  const auto [a_rows, a_columns] = args.a.shape<2>("a: (M, K), or (K, M) transposed");
  const int64_t K = args.transpose_a ? a_rows : a_columns;
  const DType dtype = args.a.dtype;
  expect("a", args.a, args.transpose_a ? Dims{K, M} : Dims{M, K}, dtype, ctx.device);
  expect("b", args.b, args.transpose_b ? Dims{N, K} : Dims{K, N}, dtype, ctx.device);
  SLUICE_CHECK(args.c.dtype == dtype || args.c.dtype == stat_dtype(dtype), "c must be ",
               name_of(dtype), " or ", name_of(stat_dtype(dtype)), ", got ", name_of(args.c.dtype));
  expect("c", args.c, {M, N}, args.c.dtype, ctx.device);
  expect_rows("a", args.a), expect_rows("b", args.b), expect_rows("c", args.c);
  if (ctx.counting()) return;
  if (!ctx.device.is_cpu()) fail_no_cuda("gemm");
  dispatch_float(dtype, [&]<class T>() { cpu::gemm<T>(args); });
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
  if (!ctx.device.is_cpu()) fail_no_cuda("grouped_gemm");
  expect_offsets(args.offsets, rows);
  dispatch_float(dtype, [&]<class T>() { cpu::grouped_gemm<T>(args); });
}

void grouped_gemm_weight(const Context& ctx, const GroupedGemmWeight& args) {
  const auto [rows, M] = args.a.shape<2>("a: (rows, M)");
  const auto [b_rows, N] = args.b.shape<2>("b: (rows, N)");
  const auto [X] = args.offsets.shape<1>("offsets: (X + 1)");
  const DType dtype = args.a.dtype;
  SLUICE_CHECK(X >= 2, "offsets: (X + 1) with at least one group, got ", X);
  expect("b", args.b, {rows, N}, dtype, ctx.device);
  expect("weights", args.weights, {X - 1, M, N}, stat_dtype(dtype), ctx.device);
  expect("offsets", args.offsets, {X}, DType::i64, ctx.device);
  expect_rows("a", args.a), expect_rows("b", args.b), expect_rows("weights", args.weights);
  if (ctx.counting()) return;
  if (!ctx.device.is_cpu()) fail_no_cuda("grouped_gemm_weight");
  expect_offsets(args.offsets, rows);
  dispatch_float(dtype, [&]<class T>() { cpu::grouped_gemm_weight<T>(args); });
}

}  // namespace sluice
