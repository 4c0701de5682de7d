#include "kernels/gemm/gemm.h"

#include <algorithm>
#include <functional>

#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"
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

// An operand as bf16: itself, or as many terms of it as are asked for, in scratch.
ConstTensorView in_bf16(const Context& ctx, const ConstTensorView& operand, int64_t terms,
                        cuda::Stack stack) {
  if (operand.dtype == DType::bf16) return operand;
  const bool below = stack == cuda::Stack::below;
  const TensorView split = ctx.scratch->alloc_padded_rows(
      {operand.rows() * (below ? terms : 1), operand.row_size() * (below ? 1 : terms)},
      DType::bf16);
  if constexpr (kBuiltWithCuda) {
    if (!ctx.counting()) cuda::split_into_bf16(ctx, operand, stack, split);
  }
  return split;
}

// Parts of a product.
Gemm rows_of_product(Gemm product, int64_t begin, int64_t count) {
  product.a =
      product.transpose_a ? product.a.columns(begin, {count}) : product.a.row_range(begin, count);
  product.c = product.c.row_range(begin, count);
  return product;
}
Gemm columns_of_product(Gemm product, int64_t begin, int64_t count) {
  product.b =
      product.transpose_b ? product.b.row_range(begin, count) : product.b.columns(begin, {count});
  product.c = product.c.columns(begin, {count});
  if (product.bias) product.bias = product.bias.columns(begin, {count});
  return product;
}
Gemm terms_of_product(Gemm product, int64_t begin, int64_t count) {
  product.a =
      product.transpose_a ? product.a.row_range(begin, count) : product.a.columns(begin, {count});
  product.b =
      product.transpose_b ? product.b.columns(begin, {count}) : product.b.row_range(begin, count);
  return product;
}

// cuBLASLt's fast kernels want rows that are whole packs of 16 bytes, in all three matrices; that
// rows lie whole packs apart is not enough. A large product whose rows end within a pack, as those
// of a vocabulary of 50257 words, is therefore one of whole packs and a rest: as long as of 50256
// words, or a tenth longer, instead of 5 times.
constexpr int64_t kPack = kPackBytes / int64_t(sizeof(bf16));
constexpr int64_t kLeastToCut = int64_t{1} << 30;  // multiplications: some us, beside a launch

void run_in_packs(const Gemm& product, const std::function<void(const Gemm&)>& run) {
  const auto cut = [](int64_t size) { return size > kPack ? size / kPack * kPack : size; };
  const int64_t M = product.c.dim(0), N = product.c.dim(1);
  const int64_t K = product.a.dim(product.transpose_a ? 0 : 1);
  if (const int64_t whole = cut(N); whole < N) {
    run_in_packs(columns_of_product(product, 0, whole), run);
    run_in_packs(columns_of_product(product, whole, N - whole), run);
  } else if (const int64_t whole = cut(M); product.transpose_a && whole < M) {
    run_in_packs(rows_of_product(product, 0, whole), run);
    run_in_packs(rows_of_product(product, whole, M - whole), run);
  } else if (const int64_t whole = cut(K);
             (!product.transpose_a || product.transpose_b) && whole < K) {
    // The few terms first: rounded to C's dtype they lose next to nothing of the sum.
    Gemm few = terms_of_product(product, whole, K - whole);
    Gemm most = terms_of_product(product, 0, whole);
    few.bias = {}, most.beta = 1;
    run_in_packs(few, run);
    run_in_packs(most, run);
  } else {
    run(product);
  }
}

bool worth_packs(const Gemm& product) {
  const int64_t K = product.a.dim(product.transpose_a ? 0 : 1);
  if (product.c.numel() * K < kLeastToCut || product.a.dtype != DType::bf16) return false;
  return aligned_rows(product.a) && aligned_rows(product.b) && aligned_rows(product.c);
}

void gemm_on_gpu(const Context& ctx, const Gemm& args) {
  const ArenaScope scope(*ctx.scratch);
  const TensorView workspace = ctx.scratch->alloc({cuda::kGemmWorkspaceBytes}, DType::u8);
  const auto product = [&](const Gemm& whole) {
    if (ctx.counting()) return;
    const auto run = [&](const Gemm& part) {
      if constexpr (kBuiltWithCuda) return cuda::gemm(ctx, part, workspace);
      fail_no_cuda("gemm");
    };
    worth_packs(whole) ? run_in_packs(whole, run) : run(whole);
  };
  const bool a_is_f32 = args.a.dtype == DType::f32, b_is_f32 = args.b.dtype == DType::f32;
  Gemm part = args;
  if (args.bias && args.c.dtype == DType::bf16)
    part.bias = in_bf16(ctx, args.bias.reshape({1, args.bias.numel()}), 1, cuda::Stack::below);
  if (args.c.dtype == DType::bf16 && (a_is_f32 || b_is_f32)) {
    part.a = in_bf16(ctx, args.a, 1, cuda::Stack::below);
    part.b = in_bf16(ctx, args.b, 1, cuda::Stack::below);
    return product(part);
  }
  if (a_is_f32 == b_is_f32) return product(part);
  // The terms are rows of A or columns of B: one product reads the other operand once for all.
  using enum cuda::Stack;
  if (a_is_f32) part.a = in_bf16(ctx, args.a, cuda::kBf16Terms, args.transpose_a ? beside : below);
  if (b_is_f32) part.b = in_bf16(ctx, args.b, cuda::kBf16Terms, args.transpose_b ? below : beside);
  part.c = ctx.scratch->alloc_padded_rows({args.c.dim(0) * (a_is_f32 ? cuda::kBf16Terms : 1),
                                           args.c.dim(1) * (b_is_f32 ? cuda::kBf16Terms : 1)},
                                          DType::f32);
  part.beta = 0, part.bias = {};
  product(part);
  if constexpr (kBuiltWithCuda) {
    if (!ctx.counting())
      cuda::add_stacked(ctx, part.c, a_is_f32 ? below : beside, args.beta, args.bias, args.c);
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
  if (args.bias) expect("bias", args.bias, {N}, stat_dtype(args.c.dtype), ctx.device);
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

std::string describe_products(Device device, DType dtype, std::initializer_list<int64_t> widths) {
  if (device.is_cpu() || dtype != DType::bf16) return "";
  // The three products of 2052 or 2050 to 8192 columns, and of 2049, beside 2048.
  constexpr double kEvenRows = 2.9, kOddRows = 5.5;
  const auto least = std::min_element(widths.begin(), widths.end(),
                                      [](int64_t a, int64_t b) { return (a & -a) < (b & -b); });
  if (whole_packs(*least, dtype)) return "";
  const double factor = *least % 2 == 0 ? kEvenRows : kOddRows;
  return concat("products of rows of ", *least, " elements take ", times_as_long(factor),
                " as of multiples of 8");
}

}  // namespace sluice
