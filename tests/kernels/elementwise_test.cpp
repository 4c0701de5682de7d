#include "kernels/elementwise/elementwise.h"

#include <gtest/gtest.h>

#include "kernels/core/halving_tree.h"
#include "kernels/core/row_blocks.h"
#include "kernels/core/threads.h"
#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

// (dims, row padding): packed and strided, larger than a piece and with empty rows.
class ElementwiseShapes : public testing::TestWithParam<std::pair<Dims, int64_t>> {
 protected:
  Tensor random(uint64_t seed, int64_t padding) const {
    Tensor tensor(GetParam().first, DType::f64, padding);
    tensor.fill_normal(seed);
    return tensor;
  }
  TestContext ctx;
};

TEST_P(ElementwiseShapes, AddScaleCopyZero) {
  Tensor x = random(1, 0), y = random(2, GetParam().second);
  const Tensor before = y.clone();
  add(ctx, x, y);
  for (int64_t i = 0; i < y.numel(); ++i) ASSERT_EQ(y.get(i), x.get(i) + before.get(i));
  scale(ctx, -2, y);
  for (int64_t i = 0; i < y.numel(); ++i) ASSERT_EQ(y.get(i), -2 * (x.get(i) + before.get(i)));
  copy(ctx, x, y);
  EXPECT_TRUE(bit_equal(x, y));
  zero(ctx, y);
  for (int64_t i = 0; i < y.numel(); ++i) ASSERT_EQ(y.get(i), 0);
}

TEST_P(ElementwiseShapes, SumOfRows) {
  const Tensor y = random(1, GetParam().second);
  const int64_t columns = y.dims().row_size();
  Tensor total = normal({columns}, DType::f64, 3), expected = total.clone();
  sum_rows(ctx, y, total);
  for (int64_t i = 0; i < y.numel(); ++i) {
    expected.set(i % columns, expected.get(i % columns) + y.get(i));
  }
  EXPECT_LE(relative_error(total, expected), tolerance(DType::f64, y.dims().rows()));
}

INSTANTIATE_TEST_SUITE_P(Shapes, ElementwiseShapes,
                         testing::Values(std::pair(Dims{1, 1}, 0), std::pair(Dims{5, 7}, 0),
                                         std::pair(Dims{3, 17, 5, 2}, 6),
                                         std::pair(Dims{2, 17011}, 3), std::pair(Dims{97, 3}, 0),
                                         std::pair(Dims{4, 0}, 1)));

TEST(Elementwise, WhatLiesBetweenRowsIsLeftAlone) {
  TestContext ctx;
  Tensor wide = normal({4, 10}, DType::f32, 1);
  const Tensor before = wide.clone();
  zero(ctx, wide.view().columns(2, {5}));
  for (int64_t i = 0; i < wide.numel(); ++i) {
    const bool inside = i % 10 >= 2 && i % 10 < 7;
    EXPECT_EQ(wide.get(i), inside ? 0 : before.get(i));
  }
}

TEST(Elementwise, CopiesAndZeroesIntegers) {
  TestContext ctx;
  Tensor x({3, 5}, DType::i32), y({3, 5}, DType::i32, 2);
  x.fill_below(1, 1000);
  copy(ctx, x, y);
  EXPECT_TRUE(bit_equal(x, y));
  zero(ctx, y);
  EXPECT_EQ(y.values(), std::vector<double>(15, 0));
  EXPECT_THROW(add(ctx, x, y), Error);
}

TEST(Elementwise, SumsDoNotDependOnTheThreadCount) {
  TestContext ctx;
  const int before = num_threads();
  Tensor x = normal({331, 19}, DType::f32, 1);
  Tensor one = zeros({19}, DType::f32), two = zeros({19}, DType::f32);
  set_num_threads(1);
  sum_rows(ctx, x, one);
  set_num_threads(2);
  sum_rows(ctx, x, two);
  set_num_threads(before);
  EXPECT_TRUE(bit_equal(one, two));
}

// The definition of the order, as plain recursion.
double halving_sum(const Tensor& x, int64_t column, int64_t lo, int64_t hi) {
  if (hi - lo == 1) return x.get(lo * x.dims()[1] + column);
  const int64_t middle = halving_middle(lo, hi);
  const double left = halving_sum(x, column, lo, middle);
  const double right = halving_sum(x, column, middle, hi);
  return x.dtype() == DType::f32 ? float(left) + float(right) : left + right;
}

TEST(TreeSum, HasTheBitsOfTheDefinition) {
  TestContext ctx;
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 13, 64, 100}) {
      for (const int64_t columns : {1, 40, 2049}) {
        Tensor x({rows, columns}, dtype, 3), y({columns}, dtype);
        x.fill_normal(1);
        tree_sum(ctx, x, y);
        for (int64_t i = 0; i < columns; ++i)
          ASSERT_EQ(y.get(i), halving_sum(x, i, 0, rows)) << rows << " rows, column " << i;
      }
    }
  }
}

TEST(TreeSum, RefusesWhatItCannotSum) {
  TestContext ctx;
  Tensor x = normal({2, 3}, DType::f32, 1);
  EXPECT_THROW(tree_sum(ctx, x, zeros({2}, DType::f32)), Error);
  EXPECT_THROW(tree_sum(ctx, x, zeros({3}, DType::f64)), Error);
  EXPECT_THROW(tree_sum(ctx, Tensor({2, 3}, DType::i32), zeros({3}, DType::i32)), Error);
  EXPECT_THROW(tree_sum(ctx, x.view().row_range(0, 0), zeros({3}, DType::f32)), Error);
}

TEST(Elementwise, RefusesWrongShapes) {
  TestContext ctx;
  Tensor x = normal({2, 3}, DType::f32, 1), y = normal({3, 2}, DType::f32, 2);
  EXPECT_THROW(add(ctx, x, y), Error);
  EXPECT_THROW(copy(ctx, x, y), Error);
  EXPECT_THROW(sum_rows(ctx, x, zeros({2}, DType::f32)), Error);
}

TEST(Elementwise, CountingRunsMeasureScratch) {
  Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
  const Context ctx{.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  const ConstTensorView x(nullptr, {100, 7}, DType::f32);
  const TensorView total(nullptr, {7}, DType::f32);
  sum_rows(ctx, x, total);
  EXPECT_EQ(scratch.peak(), align_up(RowBlocks(100).count * 7 * sizeof(float)));
  EXPECT_EQ(scratch.used(), 0u);
}

}  // namespace
}  // namespace sluice::test
