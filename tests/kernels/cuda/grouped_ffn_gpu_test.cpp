#include "kernels/gemm/grouped_ffn.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Experts {
  std::string name;
  int64_t rows;                 // of the operands; the last offset may be smaller
  std::vector<double> offsets;  // none: a dense feed-forward
  int64_t D, F, padding = 0;
  Activation kind = Activation::swiglu;

  int64_t X() const { return offsets.empty() ? 1 : int64_t(offsets.size()) - 1; }
  int64_t U() const { return kind == Activation::swiglu ? 2 * F : F; }
  int64_t used() const { return offsets.empty() ? rows : int64_t(offsets.back()); }
};
std::ostream& operator<<(std::ostream& out, const Experts& e) { return out << e.name; }

// Up, hidden, and the gradient of up. Rows of no group may hold anything.
void there_and_back(Side& side, const Experts& e, double spread = 1) {
  TensorView offsets;
  if (!e.offsets.empty()) offsets = side.values({e.X() + 1}, DType::i64, e.offsets);
  const auto rows = [&](int64_t width) {
    return side.normal({e.rows, width}, spread, 0, e.padding);
  };
  const auto result = [&](const char* what, const TensorView& whole) {
    return side.compare(concat(e.name, " ", what), whole.row_range(0, e.used()));
  };
  const TensorView up = rows(e.U()), hidden = rows(e.F);
  grouped_up(side.ctx(), {.kind = e.kind,
                          .rows = rows(e.D),
                          .weights = side.normal({e.X(), e.U(), e.D}, spread, 0, e.padding),
                          .offsets = offsets,
                          .up = up,
                          .hidden = hidden});
  result("up", up);
  result("hidden", hidden);
  const TensorView saved = rows(e.U()), dup = rows(e.U()), again = rows(e.F);
  grouped_down_backward(side.ctx(),
                        {.kind = e.kind,
                         .dout = rows(e.D),
                         .weights = side.normal({e.X(), e.D, e.F}, spread, 0, e.padding),
                         .offsets = offsets,
                         .up = saved,
                         .dup = dup,
                         .hidden = again});
  result("dup", dup);
  result("hidden again", again);
}

// Empty groups, rows that belong to none, groups that end at, before and after a tile's and half a
// tile's end.
std::vector<Experts> all_experts() {
  const std::vector<double> small{0, 3, 3, 43, 44}, tiles{0, 128, 256, 257, 320, 512, 700};
  std::vector<Experts> all;
  for (const auto& [D, F, padding] :
       {std::array<int64_t, 3>{64, 128, 0}, {72, 136, 8}, {128, 264, 0}, {23, 31, 1}, {1, 1, 0}}) {
    for (const bool many : {false, true}) {
      all.push_back({.name = concat(many ? "tiles " : "small ", D, " to ", F),
                     .rows = many ? 700 : 50,
                     .offsets = many ? tiles : small,
                     .D = D,
                     .F = F,
                     .padding = padding});
    }
  }
  return all;
}

class GroupedFfnGpu : public testing::TestWithParam<Experts> {};

TEST_P(GroupedFfnGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { there_and_back(side, GetParam(), 0.3); });
}

INSTANTIATE_TEST_SUITE_P(Experts, GroupedFfnGpu, testing::ValuesIn(all_experts()));

// More tiles than the processors of a Hopper GPU take at once, more slices than stages.
Experts large_experts() {
  return {.name = "large", .rows = 1100, .offsets = {0, 401, 401, 844, 1100}, .D = 328, .F = 2312};
}

TEST(GroupedFfnGpuEdges, ManyTiles) {
  check_on_gpu([](Side& side) { there_and_back(side, large_experts(), 0.3); });
}

Experts dense(int64_t rows, int64_t D, int64_t F, int64_t padding) {
  return {.name = concat("dense ", D, " to ", F),
          .rows = rows,
          .offsets = {},
          .D = D,
          .F = F,
          .padding = padding};
}

// So few tiles that cuBLASLt multiplies, and so many that our own kernels do, in both directions
// and in the forward alone.
TEST(GroupedFfnGpuEdges, DenseWithoutOffsets) {
  constexpr size_t kArena = size_t{40} << 20;  // cuBLASLt's
  check_on_gpu([](Side& side) { there_and_back(side, dense(50, 64, 128, 0), 0.3); },
               {.arena_bytes = kArena});
  for (const Experts& large : {dense(130, 72, 16904, 0), dense(131, 40, 8600, 8)}) {
    check_on_gpu([&](Side& side) { there_and_back(side, large, 0.3); },
                 {.arena_bytes = kArena, .in_f32 = false});
  }
}

// Least work: on tensor cores alone.
class GroupedFfnGpuLeast : public testing::TestWithParam<Experts> {};

TEST_P(GroupedFfnGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { there_and_back(side, GetParam(), 0.3); },
               {.in_f32 = false, .least = true});
}

INSTANTIATE_TEST_SUITE_P(Experts, GroupedFfnGpuLeast,
                         testing::Values(all_experts()[0], all_experts()[5], large_experts()));

TEST(GroupedFfnGpuEdges, OtherActivations) {
  check_on_gpu([](Side& side) {
    for (const Activation kind : {Activation::relu2, Activation::gelu}) {
      there_and_back(side, {.name = concat("kind ", int(kind)),
                            .rows = 90,
                            .offsets = {0, 40, 40, 77},
                            .D = 64,
                            .F = 96,
                            .kind = kind});
    }
  });
}

// What the backward computes again has the forward's bits, and NaN of others stays where it is.
TEST(GroupedFfnGpuEdges, HiddenIsTheSameInBothDirections) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Side side({Device::Kind::cuda, 0}, dtype, dtype, 1, size_t{1} << 20);
    const int64_t X = 2, D = 96, F = 264, rows = 200;
    const TensorView offsets = side.values({X + 1}, DType::i64, {0, 77, 190});
    const TensorView in = side.normal({rows, D}), up = side.nothing({rows, 2 * F}, dtype);
    const TensorView hidden = side.nothing({rows, F}, dtype),
                     again = side.nothing({rows, F}, dtype);
    grouped_up(side.ctx(), {.rows = in,
                            .weights = side.normal({X, 2 * F, D}, 0.1),
                            .offsets = offsets,
                            .up = up,
                            .hidden = hidden});
    grouped_down_backward(side.ctx(), {.dout = in,
                                       .weights = side.normal({X, D, F}, 0.1),
                                       .offsets = offsets,
                                       .up = up,
                                       .dup = side.nothing({rows, 2 * F}, dtype),
                                       .hidden = again});
    const TensorView first = hidden.row_range(0, 190), second = again.row_range(0, 190);
    EXPECT_TRUE(side.download_elements(first) == side.download_elements(second)) << name_of(dtype);
    for (const double value : side.download(first)) ASSERT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace sluice::test
