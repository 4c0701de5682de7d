#include "kernels/token_slots/token_slots.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

// Widths of whole 16 bytes, and others.
struct Case {
  int64_t n, X, slots, D, padding;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.n << " x " << c.X << " x " << c.slots << " of " << c.D;
}

// Places from counts that are a part of wider rows, and rows there and back.
void there_and_back(Side& side, const Case& c) {
  const auto [n, X, slots, D, padding] = c;
  const int64_t first = 2, wide = X + 3;
  std::vector<double> all(n * wide);
  for (size_t i = 0; i < all.size(); ++i)
    all[i] = double(random_below({.seed = 3, .stream = uint64_t(n)}, i, uint64_t(slots + 1)));
  const TensorView counts = side.values({n, wide}, DType::i32, all).columns(first, {X});
  const TensorView begin = side.output("begin", {n, X}, DType::i64);
  const TensorView offsets = side.output("offsets", {X + 1}, DType::i64);
  slot_places(side.ctx(), {.counts = counts, .begin = begin, .offsets = offsets});
  const TensorView in_slots = side.compare("slots", side.normal({n * X * slots, D}, 1, 0, padding));
  const TensorView rows = side.normal({n * X * slots, D}, 1, 0, padding);
  rows_to_slots(side.ctx(), {.rows = rows, .begin = begin, .counts = counts, .slots = in_slots});
  const TensorView back = side.compare("rows", side.normal({n * X * slots, D}, 1, 0, padding));
  slots_to_rows(side.ctx(), {.slots = in_slots, .begin = begin, .counts = counts, .rows = back});
}

class TokenSlotsGpu : public testing::TestWithParam<Case> {};

TEST_P(TokenSlotsGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { there_and_back(side, GetParam()); },
               {.f32 = 0, .bf16 = 0, .arena_bytes = size_t{1} << 20});
}

INSTANTIATE_TEST_SUITE_P(Cases, TokenSlotsGpu,
                         testing::Values(Case{1, 1, 1, 1, 0}, Case{2, 3, 5, 64, 0},
                                         Case{3, 4, 7, 33, 0}, Case{4, 2, 6, 264, 8},
                                         Case{2, 300, 3, 24, 1}, Case{2, 70, 2, 24, 0}));

}  // namespace
}  // namespace sluice::test
