#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_gemm_mma.h"
#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Groups {
  const char* name;
  int64_t rows;  // of the operands; the last offset may be smaller
  std::vector<double> offsets;
};
// Empty groups, rows that belong to none, tiles that end at, before and after a group's end, and
// more groups than lanes.
std::vector<Groups> all_groups() {
  std::vector<double> many;
  for (int64_t e = 0; e <= 70; ++e) many.push_back(double(e * e / 9));
  return {{"small", 50, {0, 3, 3, 43, 44}},
          {"one row", 1, {0, 0, 1}},
          {"none", 5, {0, 0, 0}},
          {"tiles", 700, {0, 128, 256, 257, 512, 700}},
          {"many", 600, many}};
}

struct Widths {
  int64_t K, N, padding;
};
// Whole tiles; 16-byte rows that are no whole tiles; odd; odd distances of rows.
constexpr Widths kWidths[] = {{128, 256, 0}, {72, 136, 8}, {23, 31, 0}, {64, 64, 1}, {1, 1, 0}};

// Hopper GPUs have a kernel of their own; with `older` they take that of older ones.
void multiply(Side& side, const GroupedGemm& args, bool older) {
  if (older && side.ctx().device.is_cuda() && cuda::fits_grouped_mma(args))
    return cuda::grouped_gemm_mma(side.ctx(), args);
  grouped_gemm(side.ctx(), args);
}
void multiply(Side& side, const GroupedGemmWeight& args, bool older) {
  if (older && side.ctx().device.is_cuda() && cuda::fits_grouped_mma(args))
    return cuda::grouped_gemm_weight_mma(side.ctx(), args);
  grouped_gemm_weight(side.ctx(), args);
}

struct Case {
  bool older;
  Groups groups;
  Widths widths;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.groups.name << " " << c.widths.K << "x" << c.widths.N
             << (c.older ? " on older GPUs" : "");
}
std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (const bool older : {false, true}) {
    for (const Groups& groups : all_groups()) {
      for (const Widths& widths : kWidths) all.push_back({older, groups, widths});
    }
  }
  return all;
}

class GroupedGemmGpu : public testing::TestWithParam<Case> {};

constexpr size_t kArenaBytes = size_t{1} << 20;

TEST_P(GroupedGemmGpu, AgreesWithCpu) {
  check_on_gpu(
      [](Side& side) {
        const auto& [older, groups, w] = GetParam();
        const int64_t X = int64_t(groups.offsets.size()) - 1;
        const TensorView offsets = side.values({X + 1}, DType::i64, groups.offsets);
        for (const bool transpose : {false, true}) {
          const Dims weights = transpose ? Dims{X, w.N, w.K} : Dims{X, w.K, w.N};
          multiply(side,
                   GroupedGemm{.a = side.normal({groups.rows, w.K}, 1, 0, w.padding),
                               .weights = side.normal(weights, 1, 0, w.padding),
                               .c = side.compare(transpose ? "c of transposed" : "c",
                                                 side.normal({groups.rows, w.N}, 1, 0, w.padding)),
                               .offsets = offsets,
                               .transpose_weights = transpose,
                               .beta = transpose ? 1.0 : 0.0},
                   older);
        }
      },
      {.arena_bytes = kArenaBytes});
}

void check_weight_gradient(Side& side, const Case& c, double beta) {
  const auto& [older, groups, w] = c;
  const Dims dims{int64_t(groups.offsets.size()) - 1, w.K, w.N};
  const TensorView weights =
      beta == 0 ? side.nothing(dims, stat_dtype(side.dtype())) : side.stat_normal(dims);
  multiply(side,
           GroupedGemmWeight{.a = side.normal({groups.rows, w.K}, 1, 0, w.padding),
                             .b = side.normal({groups.rows, w.N}, 1, 0, w.padding),
                             .weights = weights,
                             .offsets = side.values({dims[0] + 1}, DType::i64, groups.offsets),
                             .beta = beta},
           older);
  side.compare("dw", weights);
}

TEST_P(GroupedGemmGpu, WeightGradientAgreesWithCpu) {
  check_on_gpu([](Side& side) { check_weight_gradient(side, GetParam(), 1); },
               {.bf16 = 2e-5, .arena_bytes = kArenaBytes});
}

TEST_P(GroupedGemmGpu, WeightGradientMayOverwrite) {
  check_on_gpu([](Side& side) { check_weight_gradient(side, GetParam(), 0); },
               {.bf16 = 2e-5, .arena_bytes = kArenaBytes});
}

INSTANTIATE_TEST_SUITE_P(Cases, GroupedGemmGpu, testing::ValuesIn(all_cases()));

class GroupedGemmGpuEdges : public testing::TestWithParam<bool> {};  // older

// NaN in rows of no group, and in rows of the next group, stays where it is.
TEST_P(GroupedGemmGpuEdges, RowsOfOthersDoNotMatter) {
  check_on_gpu([](Side& side) {
    const TensorView offsets = side.values({3}, DType::i64, {0, 40, 80});
    const TensorView a = side.nothing({130, 64}, side.dtype());
    const TensorView b = side.nothing({130, 128}, side.dtype());
    const TensorView good_a = side.normal({40, 64}), good_b = side.normal({40, 128});
    copy_bytes(a.data, side.ctx().device, good_a.data, side.ctx().device,
               40 * 64 * size_of(side.dtype()), side.ctx().stream);
    copy_bytes(b.data, side.ctx().device, good_b.data, side.ctx().device,
               40 * 128 * size_of(side.dtype()), side.ctx().stream);
    const TensorView c = side.normal({130, 128});
    multiply(side,
             GroupedGemm{.a = a, .weights = side.normal({2, 64, 128}), .c = c, .offsets = offsets},
             GetParam());
    side.compare("c of group 0", c.row_range(0, 40));
    side.compare("c of no group", c.row_range(80, 50));
    const TensorView dw = side.stat_normal({2, 64, 128});
    multiply(side, GroupedGemmWeight{.a = a, .b = b, .weights = dw, .offsets = offsets},
             GetParam());
    side.compare("dw of group 0", dw.slice(0));
  });
}

// Up projection, its data and its weight gradient.
void three_products(Side& side, const Groups& groups, int64_t D, int64_t F, bool older) {
  const int64_t X = int64_t(groups.offsets.size()) - 1, rows = groups.rows;
  const TensorView offsets = side.values({X + 1}, DType::i64, groups.offsets);
  const TensorView a = side.normal({rows, D}), w = side.normal({X, F, D}, 0.1);
  multiply(side,
           GroupedGemm{.a = a,
                       .weights = w,
                       .c = side.output("up", {rows, F}, side.dtype()),
                       .offsets = offsets,
                       .transpose_weights = true},
           older);
  const TensorView dup = side.normal({rows, F});
  multiply(side,
           GroupedGemm{.a = dup,
                       .weights = w,
                       .c = side.output("dx", {rows, D}, side.dtype()),
                       .offsets = offsets},
           older);
  multiply(side,
           GroupedGemmWeight{.a = dup,
                             .b = a,
                             .weights = side.compare("dw", side.stat_normal({X, F, D})),
                             .offsets = offsets},
           older);
}

// More tiles than SMs, more slices than stages.
const Groups kManyTiles{"many tiles", 2048, {0, 701, 701, 1444, 2048}};

TEST_P(GroupedGemmGpuEdges, Experts) {
  check_on_gpu([](Side& side) { three_products(side, kManyTiles, 328, 2304, GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(OlderGpus, GroupedGemmGpuEdges, testing::Bool());

// The first product takes long in few blocks; the second may begin beside it and the third beside
// the second, which is short. The third overwrites what the first reads.
TEST(GroupedGemmGpuOrder, IndependentProductsLeaveEarlierOnesAlone) {
  check_on_gpu(
      [](Side& side) {
        constexpr int64_t kRows = 20000, kFew = 200, kModel = 600, kHidden = 64;
        const TensorView all = side.values({3}, DType::i64, {0, 19000, 20000});
        const TensorView few = side.values({3}, DType::i64, {0, 150, 200});
        const TensorView gradient = side.normal({kRows, kModel});
        const auto sums = [&](const char* what, int64_t M, int64_t N) {
          return side.output(what, {2, M, N}, side.stat());
        };
        grouped_gemm_weight(side.ctx(), {.a = gradient,
                                         .b = side.normal({kRows, kHidden}),
                                         .weights = sums("first", kModel, kHidden),
                                         .offsets = all,
                                         .beta = 0});
        grouped_gemm_weight(side.ctx(), {.a = side.normal({kFew, kHidden}),
                                         .b = side.normal({kFew, kModel}),
                                         .weights = sums("second", kHidden, kModel),
                                         .offsets = few,
                                         .beta = 0,
                                         .independent = true});
        grouped_gemm(side.ctx(), {.a = side.normal({kRows, kHidden}),
                                  .weights = side.normal({2, kHidden, kModel}),
                                  .c = side.compare("third", gradient),
                                  .offsets = all,
                                  .independent = true});
      },
      {.in_f32 = false});
}

// Least work: on tensor cores alone.
TEST(GroupedGemmGpuLeast, Experts) {
  check_on_gpu([](Side& side) { three_products(side, kManyTiles, 328, 2304, false); },
               {.in_f32 = false, .least = true});
}
TEST(GroupedGemmGpuLeast, ExpertsOnOlderGpus) {
  check_on_gpu(
      [](Side& side) {
        three_products(side, {"few tiles", 190, {0, 70, 70, 71, 190}}, 264, 136, true);
      },
      {.in_f32 = false, .least = true});
}

}  // namespace
}  // namespace sluice::test
