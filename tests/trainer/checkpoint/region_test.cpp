#include "trainer/checkpoint/region.h"

#include <gtest/gtest.h>

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

// Element by element, by counting through the box: (place in the tensor) of each of the region.
std::vector<int64_t> elements_of(const Dims& dims, const Region& region) {
  std::vector<int64_t> places;
  for (int64_t element = region.begin; element < region.end; ++element) {
    int64_t rest = element;
    int64_t place = 0;
    int64_t stride = 1;
    for (int dim = dims.rank - 1; dim >= 0; --dim) {
      place += (region.start[dim] + rest % region.size[dim]) * stride;
      rest /= region.size[dim];
      stride *= dims[dim];
    }
    places.push_back(place);
  }
  return places;
}

void expect_runs(const Dims& dims, const Region& region) {
  const std::vector<int64_t> expected = elements_of(dims, region);
  std::vector<int64_t> actual;
  int64_t local = 0;
  for (const auto& run : runs_of(dims, region)) {
    EXPECT_EQ(run.local, local);
    for (int64_t i = 0; i < run.count; ++i) actual.push_back(run.tensor + i);
    local += run.count;
  }
  EXPECT_EQ(actual, expected) << to_string(dims);
  EXPECT_EQ(num_runs(dims, region), int64_t(runs_of(dims, region).size()));
}

TEST(Region, ColumnsOfAMatrixAreOneRunARow) {
  const Region region{.start = {0, 2}, .size = {3, 2}, .begin = 1, .end = 5};
  const auto runs = runs_of({3, 5}, region);
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(runs[0].tensor, 3);
  EXPECT_EQ(runs[0].count, 1);
  EXPECT_EQ(runs[1].tensor, 7);
  EXPECT_EQ(runs[1].local, 1);
  EXPECT_EQ(runs[1].count, 2);
  EXPECT_EQ(runs[2].tensor, 12);
  EXPECT_EQ(runs[2].local, 3);
  EXPECT_EQ(runs[2].count, 1);
}

TEST(Region, WholeRowsAndWholeTensorsAreOneRun) {
  EXPECT_EQ(
      runs_of({4, 3, 2}, {.start = {1, 0, 0}, .size = {2, 3, 2}, .begin = 0, .end = 12}).size(),
      1u);
  EXPECT_EQ(runs_of({4, 3}, whole_region({4, 3})).size(), 1u);
  EXPECT_EQ(runs_of(Dims{}, whole_region(Dims{})).size(), 1u);  // a scalar
  EXPECT_EQ(runs_of({4, 3}, flat_region({4, 3}, 5, 5)).size(), 0u);
}

TEST(Region, RandomBoxesAgreeWithCountingElements) {
  Draws draws(1);
  for (int trial = 0; trial < 500; ++trial) {
    Dims dims;
    dims.rank = int(draws.between(1, 4));
    Region region;
    region.start.rank = region.size.rank = dims.rank;
    for (int dim = 0; dim < dims.rank; ++dim) {
      dims.size[dim] = draws.between(1, 5);
      region.start.size[dim] = draws.below(dims[dim]);
      region.size.size[dim] = draws.between(1, dims[dim] - region.start[dim]);
    }
    region.begin = draws.below(region.size.numel());
    region.end = draws.between(region.begin, region.size.numel());
    ASSERT_TRUE(fits(dims, region));
    expect_runs(dims, region);
  }
}

TEST(Region, WhatLiesOutsideDoesNotFit) {
  const Dims dims{4, 3};
  EXPECT_TRUE(fits(dims, {.start = {3, 0}, .size = {1, 3}, .begin = 0, .end = 3}));
  EXPECT_FALSE(fits(dims, {.start = {3, 0}, .size = {2, 3}, .begin = 0, .end = 3}));
  EXPECT_FALSE(fits(dims, {.start = {-1, 0}, .size = {1, 3}, .begin = 0, .end = 3}));
  EXPECT_FALSE(fits(dims, {.start = {0, 0}, .size = {4, 3}, .begin = 0, .end = 13}));
  EXPECT_FALSE(fits(dims, {.start = {0, 0}, .size = {4, 3}, .begin = 5, .end = 4}));
  EXPECT_FALSE(fits(dims, {.start = {0}, .size = {4}, .begin = 0, .end = 4}));
}

}  // namespace
}  // namespace sluice::test
