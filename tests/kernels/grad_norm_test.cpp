#include "kernels/grad_norm/grad_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/core/threads.h"
#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

Tensor block_sums(const Tensor& x) {
  TestContext ctx;
  Tensor sums({(x.numel() + kNormBlock - 1) / kNormBlock}, DType::f64);
  block_squares(ctx, {.x = x, .sums = sums});
  return sums;
}

double norm_of(const Tensor& x) {
  double sum = 0;
  for (const double block : block_sums(x).values()) sum += block;
  return sum;
}

TEST(GradNorm, HandComputed) {
  Tensor x({kNormBlock + 2}, DType::f32);
  x.fill(0);
  x.set(0, 3);
  x.set(kNormBlock - 1, -4);
  x.set(kNormBlock, 12);
  x.set(kNormBlock + 1, 1);
  EXPECT_EQ(block_sums(x).values(), (std::vector<double>{25, 145}));
}

// What the trainer relies on: a shard's blocks are the whole's.
TEST(GradNorm, AShardCutAtBlocksHasTheSameBits) {
  const Tensor x = normal({6 * kNormBlock}, DType::f32, 1);
  const std::vector<double> whole = block_sums(x).values();
  std::vector<double> cut;
  for (const auto& [begin, blocks] : {std::pair{0, 1}, {1, 3}, {4, 2}}) {
    Tensor shard({blocks * kNormBlock}, DType::f32);
    for (int64_t i = 0; i < shard.numel(); ++i) shard.set(i, x.get(begin * kNormBlock + i));
    for (const double sum : block_sums(shard).values()) cut.push_back(sum);
  }
  EXPECT_EQ(cut, whole);
}

TEST(GradNorm, OddSizesAgreeWithAPlainSum) {
  for (const int64_t n : {0, 1, 7, 4095, 4096, 4097, 200003}) {
    for (const DType dtype : {DType::f32, DType::f64}) {
      const Tensor x = normal({n}, dtype, 1);
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += x.get(i) * x.get(i);
      EXPECT_NEAR(norm_of(x), sum, sum * tolerance(DType::f64, n)) << n;
    }
  }
}

// In float the square would overflow, and small terms would vanish beside a large sum.
TEST(GradNorm, AccumulatesInDouble) {
  Tensor x({70000}, DType::f32);
  x.fill(1);
  x.set(0, 1e25);
  EXPECT_DOUBLE_EQ(norm_of(x), double(1e25f) * double(1e25f));
  x.set(0, 4096);  // 2^24: adding 1 to it in float is lost
  EXPECT_EQ(norm_of(x), 16777216 + 69999);
}

TEST(GradNorm, NonFiniteElementsShow) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    for (const int64_t where : {0, 4096, 70000}) {
      Tensor x = normal({70001}, DType::f32, 1);
      x.set(where, bad);
      EXPECT_FALSE(std::isfinite(norm_of(x))) << bad << " at " << where;
    }
  }
}

TEST(GradNorm, OrderedSumTakesTheOrderGiven) {
  TestContext ctx;
  Tensor values({3}, DType::f64), places({3}, DType::i64), sum({1}, DType::f64);
  values.fill({1e16, 1, -1e16});
  places.fill({0, 2, 1});
  ordered_sum(ctx, {.values = values, .places = places, .sum = sum});
  EXPECT_EQ(sum.get(0), 1);
  places.fill({0, 1, 2});
  ordered_sum(ctx, {.values = values, .places = places, .sum = sum});
  EXPECT_EQ(sum.get(0), 0);
}

TEST(GradNorm, ClipsAndRefusesWhatIsNotFinite) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  struct Case {
    double square, loss, clip, norm, grad_scale, apply;
  };
  for (const Case& c : {Case{16, 1, 1, 5, 0.2, 1}, Case{16, 1, 0, 5, 1, 1}, Case{16, 1, 6, 5, 1, 1},
                        Case{16, kInf, 1, 5, 0.2, 0}, Case{kInf, 1, 0, kInf, 1, 0}}) {
    TestContext ctx;
    Tensor squares({2}, DType::f64), loss({1}, DType::f64), norm({1}, DType::f64);
    Tensor grad_scale({1}, DType::f64), apply({1}, DType::f64);
    squares.fill({c.square, 9});
    loss.fill(c.loss);
    clip_gradient(ctx, {.squares = squares,
                        .loss = loss,
                        .clip = c.clip,
                        .norm = norm,
                        .grad_scale = grad_scale,
                        .apply = apply});
    EXPECT_EQ(norm.get(0), c.norm);
    EXPECT_EQ(grad_scale.get(0), c.grad_scale);
    EXPECT_EQ(apply.get(0), c.apply);
  }
}

TEST(GradNorm, BitEqualUnderAnyThreadCount) {
  const Tensor x = normal({300007}, DType::f32, 1);
  const int threads = num_threads();
  set_num_threads(1);
  const double one = norm_of(x);
  set_num_threads(2);
  const double two = norm_of(x);
  set_num_threads(threads);
  EXPECT_EQ(one, two);
}

TEST(GradNorm, RefusesWrongShapes) {
  TestContext ctx;
  const Tensor x = zeros({2, 3}, DType::f32);
  const Tensor flat = zeros({4097}, DType::f32);
  Tensor one({1}, DType::f64), two({2}, DType::f64), narrow({2}, DType::f32);
  EXPECT_THROW(block_squares(ctx, {.x = x, .sums = one}), Error);
  EXPECT_THROW(block_squares(ctx, {.x = flat, .sums = one}), Error);
  EXPECT_THROW(block_squares(ctx, {.x = flat, .sums = narrow}), Error);
  block_squares(ctx, {.x = flat, .sums = two});
}

}  // namespace
}  // namespace sluice::test
