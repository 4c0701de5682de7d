#include "kernels/elementwise/elementwise.h"

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

TEST(ElementwiseGpuEdges, MoreRowsThanBlocks) {
  check_on_gpu([](Side& side) {
    const TensorView x = side.normal({1000, 300});
    sum_rows(side.ctx(), x, side.compare("total", side.stat_normal({300})));
  });
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
