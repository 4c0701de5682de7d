#include "kernels/token_slots/token_slots.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

// Places from counts that are a part of wider rows, and rows there and back. Widths of whole 16
// bytes, and others.
void there_and_back(Side& side, int64_t n, int64_t X, int64_t slots, int64_t D, int64_t padding) {
  const int64_t first = 2, wide = X + 3;
  std::vector<double> all(n * wide);
  for (size_t i = 0; i < all.size(); ++i)
    all[i] = double(random_below({.seed = 3, .stream = uint64_t(n)}, i, uint64_t(slots + 1)));
  const TensorView counts = side.values({n, wide}, DType::i32, all).columns(first, {X});
  const std::string name = concat(n, " x ", X, " x ", slots, " of ", D, ": ");
  const TensorView begin = side.output(name + "begin", {n, X}, DType::i64);
  const TensorView offsets = side.output(name + "offsets", {X + 1}, DType::i64);
  slot_places(side.ctx(), {.counts = counts, .begin = begin, .offsets = offsets});
  const TensorView in_slots =
      side.compare(name + "slots", side.normal({n * X * slots, D}, 1, 0, padding));
  const TensorView rows = side.normal({n * X * slots, D}, 1, 0, padding);
  rows_to_slots(side.ctx(), {.rows = rows, .begin = begin, .counts = counts, .slots = in_slots});
  const TensorView back =
      side.compare(name + "rows", side.normal({n * X * slots, D}, 1, 0, padding));
  slots_to_rows(side.ctx(), {.slots = in_slots, .begin = begin, .counts = counts, .rows = back});
}

TEST(TokenSlotsGpu, AgreesWithCpu) {
  check_on_gpu(
      [](Side& side) {
        there_and_back(side, 1, 1, 1, 1, 0);
        there_and_back(side, 2, 3, 5, 64, 0);
        there_and_back(side, 3, 4, 7, 33, 0);
        there_and_back(side, 4, 2, 6, 264, 8);
        there_and_back(side, 2, 300, 3, 24, 1);
      },
      {.f32 = 0, .bf16 = 0});
}

}  // namespace
}  // namespace sluice::test
