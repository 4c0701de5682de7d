#include "kernels/elementwise/elementwise.h"

#include "kernels/core/halving_tree.h"
#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

class ElementwiseGpu : public testing::TestWithParam<int64_t> {};  // padding of rows

TEST_P(ElementwiseGpu, AgreesWithCpu) {
  const int64_t padding = GetParam();
  check_on_gpu([&](Side& side) {
    const TensorView x = side.normal({3, 37, 41}, 1, 0, padding);
    add(side.ctx(), x, side.compare("add", side.normal({3, 37, 41})));
    copy(side.ctx(), x, side.output("copy", x.dims, side.dtype(), padding));
    convert(side.ctx(), x, side.output("convert", x.dims, side.stat()));
    scale(side.ctx(), 0.25, side.compare("scale", side.normal({3, 37, 41}, 1, 0, padding)));
    zero(side.ctx(), side.output("zero", x.dims, side.dtype(), padding));
    sum_rows(side.ctx(), x, side.compare("sum_rows", side.stat_normal({41})));
  });
}

INSTANTIATE_TEST_SUITE_P(Rows, ElementwiseGpu, testing::Values(0, 7));

// 16 bytes at a time, and not.
TEST(ElementwiseGpuEdges, AddsWhateverLiesWhere) {
  for (const int64_t n : {1, 4, 8, 1000, 300008}) {
    for (const int64_t begin : {0, 1, 8}) {
      check_on_gpu([n, begin](Side& side) {
        const TensorView x = side.normal({n + 8}), y = side.normal({n + 8});
        side.compare("y", y);
        add(side.ctx(), x.columns(begin, {n}), y.columns(0, {n}));
      });
    }
  }
}

TEST(ElementwiseGpuEdges, MoreRowsThanBlocks) {
  check_on_gpu([](Side& side) {
    const TensorView x = side.normal({1000, 300});
    sum_rows(side.ctx(), x, side.compare("total", side.stat_normal({300})));
  });
}

float halving_sum(const std::vector<double>& x, int64_t stride, int64_t column, int64_t lo,
                  int64_t hi) {
  if (hi - lo == 1) return float(x[lo * stride + column]);
  const int64_t middle = halving_middle(lo, hi);
  return halving_sum(x, stride, column, lo, middle) + halving_sum(x, stride, column, middle, hi);
}

// Fixed numbers of rows and any number, rows at 16 bytes and not: the same bits as on the host.
TEST(TreeSumGpu, HasTheBitsOfTheDefinition) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (const int64_t rows : {1, 2, 3, 4, 7, 8, 11, 64}) {
    for (const int64_t columns : {1, 7, 4096, 300004, 300005}) {
      for (const int64_t begin : {0, 1}) {  // at which column of the wide rows
        if (rows > 8 && columns > 4096) continue;
        Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, size_t{1} << 24);
        const int64_t stride = (columns + 7) / 4 * 4;
        std::vector<double> values(rows * stride);
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = float(random_normal({.seed = 4, .stream = 1}, i));
        const TensorView wide = side.values({rows, stride}, DType::f32, values);
        const TensorView y = side.output("y", {columns}, DType::f32);
        tree_sum(side.ctx(), wide.columns(begin, {columns}), y);
        const std::vector<double> sums = side.download(y);
        for (int64_t i = 0; i < columns; ++i) {
          ASSERT_EQ(float(sums[i]), halving_sum(values, stride, begin + i, 0, rows))
              << rows << " x " << columns << " from " << begin << ", column " << i;
        }
      }
    }
  }
}

TEST(ElementwiseGpuEdges, NothingIsNothing) {
  check_on_gpu([](Side& side) {
    const TensorView y = side.compare("y", side.normal({2, 3}));
    const TensorView none = y.row_range(0, 0);
    add(side.ctx(), none, none);
    zero(side.ctx(), none);
    copy(side.ctx(), none, none);
  });
}

}  // namespace
}  // namespace sluice::test
