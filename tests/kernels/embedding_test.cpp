#include "kernels/embedding/embedding.h"

#include <gtest/gtest.h>

#include "kernels/core/threads.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

TEST(Embedding, HandComputed) {
  TestContext ctx;
  Tensor tokens({2, 2}, DType::i32), weight({3, 2}, DType::f64), y({2, 2, 2}, DType::f64);
  tokens.fill({2, 0, 2, 2});
  weight.fill({1, 2, 3, 4, 5, 6});
  embedding_forward(ctx, {.tokens = tokens, .weight = weight, .y = y});
  EXPECT_EQ(y.values(), (std::vector<double>{5, 6, 1, 2, 5, 6, 5, 6}));

  Tensor dy({2, 2, 2}, DType::f64), dweight({3, 2}, DType::f64);
  dy.fill({1, 2, 10, 20, 100, 200, 1000, 2000});
  dweight.fill(0.5);
  embedding_backward(ctx, {.tokens = tokens, .dy = dy, .dweight = dweight});
  EXPECT_EQ(dweight.values(), (std::vector<double>{10.5, 20.5, 0.5, 0.5, 1101.5, 2202.5}));
}

struct Case {
  Case(int64_t B, int64_t T, int64_t V, int64_t D, DType dtype, int64_t padding = 0)
      : tokens({B, T}, DType::i32, padding),
        weight({V, D}, dtype, padding),
        y({B, T, D}, dtype, padding),
        dy({B, T, D}, dtype, padding),
        dweight({V, D}, dtype) {
    tokens.fill_below(1, V);
    weight.fill_normal(2);
    dy.fill_normal(3);
    dweight.fill(0);
  }
  void forward() { embedding_forward(ctx, {.tokens = tokens, .weight = weight, .y = y}); }
  void backward() { embedding_backward(ctx, {.tokens = tokens, .dy = dy, .dweight = dweight}); }
  TestContext ctx;
  Tensor tokens, weight, y, dy, dweight;
};

struct Shape {
  int64_t B = 1, T = 1, V = 1, D = 1;
};
class EmbeddingShapes : public testing::TestWithParam<Shape> {};

TEST_P(EmbeddingShapes, GradientsMatchCentralDifferences) {
  const Shape s = GetParam();
  Case c(s.B, s.T, s.V, s.D, DType::f64, 3);
  c.backward();
  check_gradients(
      [&] {
        c.forward();
        return weighted_sum({&c.y}, {&c.dy});
      },
      {{"weight", &c.weight, &c.dweight}});
}

TEST_P(EmbeddingShapes, FloatAgreesWithDouble) {
  const Shape s = GetParam();
  Case a(s.B, s.T, s.V, s.D, DType::f32), b(s.B, s.T, s.V, s.D, DType::f64);
  a.forward(), a.backward();
  b.forward(), b.backward();
  EXPECT_LE(relative_error(a.y, b.y), tolerance(DType::f32));
  EXPECT_LE(relative_error(a.dweight, b.dweight), tolerance(DType::f32, s.B * s.T));
}

TEST_P(EmbeddingShapes, BitEqualUnderAnyThreadCount) {
  const Shape s = GetParam();
  Case a(s.B, s.T, s.V, s.D, DType::f32), b(s.B, s.T, s.V, s.D, DType::f32);
  const int threads = num_threads();
  set_num_threads(1);
  a.forward(), a.backward();
  set_num_threads(2);
  b.forward(), b.backward();
  set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.y, b.y) && bit_equal(a.dweight, b.dweight));
}

INSTANTIATE_TEST_SUITE_P(Shapes, EmbeddingShapes,
                         testing::Values(Shape{}, Shape{.B = 2, .T = 37, .V = 5, .D = 131},
                                         Shape{.B = 3, .T = 1, .V = 11, .D = 64}));

TEST(Embedding, NamesATokenOutsideTheVocabulary) {
  Case c(2, 3, 7, 4, DType::f32);
  for (const int bad : {7, -1}) {
    c.tokens.set(5, bad);  // row 1, position 2
    for (const bool backward : {false, true}) {
      try {
        backward ? c.backward() : c.forward();
        FAIL() << "token " << bad << " was accepted";
      } catch (const DataError& error) {
        const std::string what = error.what();
        EXPECT_NE(what.find(concat("token ", bad, " at row 1, position 2")), what.npos) << what;
        EXPECT_NE(what.find("vocabulary of 7"), what.npos) << what;
      }
    }
  }
}

TEST(Embedding, RefusesWrongShapes) {
  TestContext ctx;
  Tensor tokens = zeros({2, 3}, DType::i32), weight = zeros({5, 4}, DType::f32);
  Tensor narrow({2, 3, 3}, DType::f32), wide({2, 3, 4}, DType::f64);
  EXPECT_THROW(embedding_forward(ctx, {.tokens = tokens, .weight = weight, .y = narrow}), Error);
  EXPECT_THROW(embedding_forward(ctx, {.tokens = tokens, .weight = weight, .y = wide}), Error);
}

}  // namespace
}  // namespace sluice::test
