#include "kernels/token_permute/token_permute.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/threads.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

struct Index {
  Index(int64_t B, int64_t T, int64_t k, int64_t X, int64_t capacity = 0, int64_t padding = 0)
      : experts({B, T, k}, DType::i32, padding),
        slot({B, T, k}, DType::i32, padding),
        offsets({X + 1}, DType::i64),
        capacity(capacity) {
    // A token's choices are distinct, as the router's are.
    for (int64_t t = 0; t < B * T; ++t) {
      const int64_t first = random_below({.seed = 7, .stream = 1}, t, X);
      for (int64_t j = 0; j < k; ++j) experts.set(t * k + j, double((first + j * j) % X));
    }
  }
  void build() {
    token_index(ctx, {.experts = experts, .slot = slot, .offsets = offsets, .capacity = capacity});
  }
  TestContext ctx;
  Tensor experts, slot, offsets;
  int64_t capacity;
};

TEST(TokenPermute, IndexHandComputed) {
  Index index(1, 3, 2, 3);
  index.experts.fill({2, 0, 0, 1, 2, 0});
  index.build();
  EXPECT_EQ(index.offsets.values(), (std::vector<double>{0, 3, 4, 6}));
  EXPECT_EQ(index.slot.values(), (std::vector<double>{4, 0, 1, 3, 5, 2}));
}

TEST(TokenPermute, CapacityKeepsTheFirstOfEachRow) {
  Index index(2, 3, 1, 2, 2);
  index.experts.fill({1, 1, 1, 0, 1, 1});  // the third of row 0 is one too many
  index.build();
  EXPECT_EQ(index.offsets.values(), (std::vector<double>{0, 1, 5}));
  EXPECT_EQ(index.slot.values(), (std::vector<double>{1, 2, -1, 0, 3, 4}));
}

// Rows cut over sequence ranks: told what came before, each keeps what one rank would.
TEST(TokenPermute, CapacityCountsWhatEarlierRanksHold) {
  const int64_t B = 2, T = 11, k = 2, X = 3, capacity = 4;
  Index whole(B, T, k, X, capacity);
  whole.build();
  for (const DType dtype : {DType::f32, DType::f64}) {
    Tensor before = zeros({B, X}, dtype);
    int64_t begin = 0;
    for (const int64_t tokens : {1, 7, 3}) {
      Index part(B, tokens, k, X, capacity);
      Tensor kept({X}, DType::i32);
      for (int64_t i = 0; i < part.experts.numel(); ++i) {
        const int64_t b = i / (tokens * k);
        part.experts.set(i, whole.experts.get((b * T + begin) * k + i % (tokens * k)));
      }
      token_index(part.ctx, {.experts = part.experts,
                             .before = before,
                             .slot = part.slot,
                             .offsets = part.offsets,
                             .kept = kept,
                             .capacity = capacity});
      for (int64_t i = 0; i < part.slot.numel(); ++i) {
        const int64_t b = i / (tokens * k);
        const double of_whole = whole.slot.get((b * T + begin) * k + i % (tokens * k));
        EXPECT_EQ(part.slot.get(i) < 0, of_whole < 0) << "token " << begin << " on, entry " << i;
        const int64_t choice = b * X + int64_t(part.experts.get(i));
        before.set(choice, before.get(choice) + 1);
      }
      for (int64_t e = 0; e < X; ++e) {
        EXPECT_EQ(kept.get(e), part.offsets.get(e + 1) - part.offsets.get(e));
      }
      begin += tokens;
    }
    EXPECT_EQ(begin, T);
  }
}

TEST(TokenPermute, MovesRowsHandComputed) {
  Index index(1, 2, 2, 2);
  index.experts.fill({1, 0, 1, 0});
  index.build();
  Tensor x({1, 2, 2}, DType::f64), rows({4, 2}, DType::f64), y({1, 2, 2}, DType::f64);
  x.fill({1, 2, 30, 40});
  token_permute_forward(index.ctx, {.x = x, .slot = index.slot, .rows = rows});
  EXPECT_EQ(rows.values(), (std::vector<double>{1, 2, 30, 40, 1, 2, 30, 40}));
  rows.fill({1, 2, 3, 4, 50, 60, 70, 80});
  Tensor weights({1, 2, 2}, DType::f64);
  weights.fill({2, 3, 4, 5});
  token_unpermute_forward(index.ctx,
                          {.rows = rows, .slot = index.slot, .weights = weights, .y = y});
  // token 0: 2 * rows[2] + 3 * rows[0]; token 1: 4 * rows[3] + 5 * rows[1]
  EXPECT_EQ(y.values(), (std::vector<double>{103, 126, 295, 340}));
}

struct Shape {
  int64_t B = 1, T = 1, k = 1, X = 1, D = 1, capacity = 0;
};

// x is sorted, each row transformed by its own factor, and summed back.
struct Case {
  Case(const Shape& s, DType dtype, int64_t padding = 0)
      : index(s.B, s.T, s.k, s.X, s.capacity, padding),
        x({s.B, s.T, s.D}, dtype, padding),
        weights({s.B, s.T, s.k}, dtype, padding),
        rows({s.B * s.T * s.k, s.D}, dtype, padding),
        y({s.B, s.T, s.D}, dtype, padding),
        dy({s.B, s.T, s.D}, dtype, padding),
        drows({s.B * s.T * s.k, s.D}, dtype, padding),
        dweights({s.B, s.T, s.k}, dtype, padding),
        dx({s.B, s.T, s.D}, dtype, padding) {
    x.fill_normal(1);
    weights.fill_normal(2);
    dy.fill_normal(3);
    index.build();
  }
  double factor(int64_t slot) const { return 1 + 0.25 * double(slot % 5); }
  void scale_rows(Tensor& tensor) {
    const int64_t D = tensor.dims()[1];
    for (int64_t i = 0; i < int64_t(index.offsets.get(index.offsets.numel() - 1)) * D; ++i) {
      tensor.set(i, tensor.get(i) * factor(i / D));
    }
  }
  void forward() {
    token_permute_forward(index.ctx, {.x = x, .slot = index.slot, .rows = rows});
    scale_rows(rows);
    token_unpermute_forward(index.ctx,
                            {.rows = rows, .slot = index.slot, .weights = weights, .y = y});
  }
  void backward(bool in_place = false) {
    token_unpermute_backward(index.ctx, {.dy = dy,
                                         .rows = rows,
                                         .slot = index.slot,
                                         .weights = weights,
                                         .drows = in_place ? rows : drows,
                                         .dweights = dweights});
    scale_rows(in_place ? rows : drows);
    token_permute_backward(index.ctx,
                           {.drows = in_place ? rows : drows, .slot = index.slot, .dx = dx});
  }
  Index index;
  Tensor x, weights, rows, y, dy, drows, dweights, dx;
};

class TokenPermuteShapes : public testing::TestWithParam<Shape> {};

TEST_P(TokenPermuteShapes, SlotsAreAStableSort) {
  const Shape s = GetParam();
  Index index(s.B, s.T, s.k, s.X, s.capacity);
  index.build();
  std::vector<int64_t> last_entry(s.X, -1);
  std::vector<std::vector<int64_t>> taken(s.B, std::vector<int64_t>(s.X, 0));
  int64_t kept = 0;
  for (int64_t i = 0; i < s.B * s.T * s.k; ++i) {
    const int64_t expert = int64_t(index.experts.get(i));
    const int64_t slot = int64_t(index.slot.get(i));
    int64_t& row_taken = taken[i / (s.T * s.k)][expert];
    ASSERT_EQ(slot<0, s.capacity> 0 && row_taken >= s.capacity) << "entry " << i;
    if (slot < 0) continue;
    ++row_taken, ++kept;
    EXPECT_GE(slot, index.offsets.get(expert));
    EXPECT_LT(slot, index.offsets.get(expert + 1));
    EXPECT_GT(slot, last_entry[expert]);
    last_entry[expert] = slot;
  }
  EXPECT_EQ(index.offsets.get(s.X), kept);
}

TEST_P(TokenPermuteShapes, GradientsMatchCentralDifferences) {
  Case c(GetParam(), DType::f64, 3);
  c.forward(), c.backward();
  check_gradients(
      [&] {
        c.forward();
        return weighted_sum({&c.y}, {&c.dy});
      },
      {{"x", &c.x, &c.dx}, {"weights", &c.weights, &c.dweights}});
}

TEST_P(TokenPermuteShapes, BackwardTakesTheRoutersPartAlong) {
  const Shape s = GetParam();
  Case c(s, DType::f64, 3);
  c.forward(), c.backward();
  Tensor dlogits({s.B, s.T, s.X}, DType::f64, 3), router({s.X, s.D}, DType::f64, 1);
  dlogits.fill_normal(4), router.fill_normal(5);
  Tensor both({s.B, s.T, s.D}, DType::f64, 3), expected({s.B, s.T, s.D}, DType::f64);
  token_permute_backward(
      c.index.ctx,
      {.drows = c.drows, .slot = c.index.slot, .dlogits = dlogits, .router = router, .dx = both});
  for (int64_t i = 0; i < expected.numel(); ++i) {
    double sum = c.dx.get(i);
    for (int64_t e = 0; e < s.X; ++e)
      sum += dlogits.get(i / s.D * s.X + e) * router.get(e * s.D + i % s.D);
    expected.set(i, sum);
  }
  EXPECT_LE(relative_error(both, expected), 1e-12);
}

TEST_P(TokenPermuteShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f64);
  a.forward(), a.backward();
  b.forward(), b.backward();
  EXPECT_LE(relative_error(a.y, b.y), tolerance(DType::f32));
  EXPECT_LE(relative_error(a.dx, b.dx), tolerance(DType::f32));
  EXPECT_LE(relative_error(a.dweights, b.dweights), tolerance(DType::f32, GetParam().D));
}

TEST_P(TokenPermuteShapes, BitEqualInPlaceAndUnderAnyThreadCount) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f32);
  const int threads = num_threads();
  set_num_threads(1);
  a.forward(), a.backward();
  set_num_threads(2);
  b.forward(), b.backward(true);
  set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.y, b.y) && bit_equal(a.dx, b.dx) && bit_equal(a.dweights, b.dweights));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, TokenPermuteShapes,
    testing::Values(Shape{}, Shape{.B = 2, .T = 13, .k = 2, .X = 5, .D = 7},
                    Shape{.B = 3, .T = 11, .k = 2, .X = 3, .D = 17, .capacity = 4},
                    Shape{.B = 1, .T = 2, .k = 1, .X = 19, .D = 4},
                    Shape{.B = 2, .T = 37, .k = 1, .X = 1, .D = 3, .capacity = 1}));

TEST(TokenPermute, RefusesWrongArguments) {
  Index index(1, 3, 2, 4);
  index.experts.set(3, 4);
  EXPECT_THROW(index.build(), Error);
  index.experts.set(3, 0);
  index.capacity = -1;
  EXPECT_THROW(index.build(), Error);
  index.capacity = 0;
  EXPECT_NO_THROW(index.build());
  Tensor x = zeros({1, 3, 5}, DType::f32), rows({6, 4}, DType::f32);
  EXPECT_THROW(token_permute_forward(index.ctx, {.x = x, .slot = index.slot, .rows = rows}), Error);
}

}  // namespace
}  // namespace sluice::test
