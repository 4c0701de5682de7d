#include "kernels/gemm/gemm.h"

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

TEST(GroupedGemmGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) {
    for (const Groups& groups : all_groups()) {
      const int64_t X = int64_t(groups.offsets.size()) - 1;
      const TensorView offsets = side.values({X + 1}, DType::i64, groups.offsets);
      for (const Widths& w : kWidths) {
        for (const bool transpose : {false, true}) {
          const std::string name =
              concat(groups.name, " ", w.K, "x", w.N, transpose ? " transposed" : "");
          grouped_gemm(side.ctx(),
                       {.a = side.normal({groups.rows, w.K}, 1, 0, w.padding),
                        .weights = side.normal(transpose ? Dims{X, w.N, w.K} : Dims{X, w.K, w.N}, 1,
                                               0, w.padding),
                        .c = side.compare(name, side.normal({groups.rows, w.N}, 1, 0, w.padding)),
                        .offsets = offsets,
                        .transpose_weights = transpose,
                        .beta = transpose ? 1.0 : 0.0});
        }
      }
    }
  });
}

TEST(GroupedGemmGpu, WeightGradientAgreesWithCpu) {
  check_on_gpu(
      [](Side& side) {
        for (const Groups& groups : all_groups()) {
          const int64_t X = int64_t(groups.offsets.size()) - 1;
          const TensorView offsets = side.values({X + 1}, DType::i64, groups.offsets);
          for (const Widths& w : kWidths) {
            const std::string name = concat(groups.name, " ", w.K, "x", w.N);
            grouped_gemm_weight(side.ctx(),
                                {.a = side.normal({groups.rows, w.K}, 1, 0, w.padding),
                                 .b = side.normal({groups.rows, w.N}, 1, 0, w.padding),
                                 .weights = side.compare(name, side.stat_normal({X, w.K, w.N})),
                                 .offsets = offsets});
          }
        }
      },
      {.bf16 = 2e-5});
}

// NaN in rows of no group, and in rows of the next group, stays where it is.
TEST(GroupedGemmGpu, RowsOfOthersDoNotMatter) {
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
    grouped_gemm(side.ctx(),
                 {.a = a, .weights = side.normal({2, 64, 128}), .c = c, .offsets = offsets});
    side.compare("c of group 0", c.row_range(0, 40));
    side.compare("c of no group", c.row_range(80, 50));
    const TensorView dw = side.stat_normal({2, 64, 128});
    grouped_gemm_weight(side.ctx(), {.a = a, .b = b, .weights = dw, .offsets = offsets});
    side.compare("dw of group 0", dw.slice(0));
  });
}

// The up projection of 8 experts.
TEST(GroupedGemmGpu, Experts) {
  check_on_gpu([](Side& side) {
    const int64_t X = 8, rows = 1024, D = 192, F = 320;
    const TensorView offsets =
        side.values({X + 1}, DType::i64, {0, 256, 300, 300, 411, 524, 655, 777, 1024});
    const TensorView a = side.normal({rows, D}), w = side.normal({X, F, D}, 0.1);
    grouped_gemm(side.ctx(), {.a = a,
                              .weights = w,
                              .c = side.output("up", {rows, F}, side.dtype()),
                              .offsets = offsets,
                              .transpose_weights = true});
    const TensorView dup = side.normal({rows, F});
    grouped_gemm(side.ctx(), {.a = dup,
                              .weights = w,
                              .c = side.output("dx", {rows, D}, side.dtype()),
                              .offsets = offsets});
    grouped_gemm_weight(side.ctx(), {.a = dup,
                                     .b = a,
                                     .weights = side.compare("dw", side.stat_normal({X, F, D})),
                                     .offsets = offsets});
  });
}

}  // namespace
}  // namespace sluice::test
