#include "kernels/token_slots/token_slots.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

Tensor whole_numbers(const Dims& dims, DType dtype, const std::vector<double>& values) {
  Tensor tensor(dims, dtype);
  tensor.fill(values);
  return tensor;
}

TEST(TokenSlots, PlacesAreByExpertThenSource) {
  TestContext ctx;
  const Tensor counts = whole_numbers({2, 3}, DType::i32, {2, 0, 1, 3, 1, 0});
  Tensor begin({2, 3}, DType::i64), offsets({4}, DType::i64);
  slot_places(ctx, {.counts = counts, .begin = begin, .offsets = offsets});
  EXPECT_EQ(offsets.values(), (std::vector<double>{0, 5, 6, 7}));
  EXPECT_EQ(begin.values(), (std::vector<double>{0, 5, 6, 2, 5, 7}));
}

// A part of wider counts, as one rank's experts are of everybody's.
TEST(TokenSlots, CountsMayBeAPartOfWiderRows) {
  TestContext ctx;
  const Tensor all = whole_numbers({2, 4}, DType::i32, {9, 2, 1, 9, 9, 3, 0, 9});
  const ConstTensorView counts = all.view().columns(1, {2});
  Tensor begin({2, 2}, DType::i64), offsets({3}, DType::i64);
  slot_places(ctx, {.counts = counts, .begin = begin, .offsets = offsets});
  EXPECT_EQ(offsets.values(), (std::vector<double>{0, 5, 6}));
  EXPECT_EQ(begin.values(), (std::vector<double>{0, 5, 2, 6}));
}

class TokenSlotsMoves : public testing::TestWithParam<int64_t> {};  // padding of rows

TEST_P(TokenSlotsMoves, ThereAndBack) {
  TestContext ctx;
  constexpr int64_t kSlots = 3, D = 5, kRows = 9;
  const Tensor counts = whole_numbers({2, 2}, DType::i32, {2, 0, 3, 1});
  const Tensor begin = whole_numbers({2, 2}, DType::i64, {4, 0, 0, 8});
  Tensor rows({kRows, D}, DType::f32, GetParam());
  rows.fill_normal(1);
  Tensor slots({4 * kSlots, D}, DType::f32, GetParam());
  rows_to_slots(ctx, {.rows = rows, .begin = begin, .counts = counts, .slots = slots});
  Tensor back({kRows, D}, DType::f32, GetParam());
  slots_to_rows(ctx, {.slots = slots, .begin = begin, .counts = counts, .rows = back});
  const std::vector<int64_t> slot_of_row = {6, 7, 8, -1, 0, 1, -1, -1, 9};
  int64_t written = 0;
  for (int64_t i = 0; i < slots.numel(); ++i) written += !std::isnan(slots.get(i));
  EXPECT_EQ(written, 6 * D);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < D; ++i) {
      const int64_t slot = slot_of_row[row];
      if (slot >= 0) {
        EXPECT_EQ(slots.get(slot * D + i), rows.get(row * D + i)) << "row " << row;
        EXPECT_EQ(back.get(row * D + i), rows.get(row * D + i)) << "row " << row;
      } else {
        EXPECT_TRUE(std::isnan(back.get(row * D + i))) << "row " << row << " is of no block";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Padding, TokenSlotsMoves, testing::Values(0, 2));

TEST(TokenSlots, RefusesMoreRowsThanPlaces) {
  TestContext ctx;
  const Tensor counts = whole_numbers({1, 2}, DType::i32, {2, 1});
  const Tensor begin = whole_numbers({1, 2}, DType::i64, {0, 2});
  const Tensor rows = normal({3, 4}, DType::f64, 1);
  Tensor slots({2, 4}, DType::f64), uneven({3, 4}, DType::f64);
  EXPECT_THROW(rows_to_slots(ctx, {.rows = rows, .begin = begin, .counts = counts, .slots = slots}),
               Error);
  EXPECT_THROW(
      rows_to_slots(ctx, {.rows = rows, .begin = begin, .counts = counts, .slots = uneven}), Error);
}

}  // namespace
}  // namespace sluice::test
