#include "kernels/grad_norm/grad_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/core/threads.h"
#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

double norm_of(const Tensor& x) {
  TestContext ctx;
  Tensor sum({1}, DType::f64);
  squared_norm(ctx, {.x = x, .sum = sum});
  return sum.get(0);
}

TEST(GradNorm, HandComputed) {
  Tensor x({3}, DType::f32);
  x.fill({3, -4, 12});
  EXPECT_EQ(norm_of(x), 169);
}

TEST(GradNorm, OddSizesAgreeWithAPlainSum) {
  for (const int64_t n : {0, 1, 7, 65535, 65536, 65537, 200003}) {
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
    for (const int64_t where : {0, 65536, 70000}) {
      Tensor x = normal({70001}, DType::f32, 1);
      x.set(where, bad);
      EXPECT_FALSE(std::isfinite(norm_of(x))) << bad << " at " << where;
    }
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
  Tensor sum({1}, DType::f64), narrow({1}, DType::f32);
  EXPECT_THROW(squared_norm(ctx, {.x = x, .sum = sum}), Error);
  const Tensor flat = zeros({6}, DType::f32);
  EXPECT_THROW(squared_norm(ctx, {.x = flat, .sum = narrow}), Error);
}

}  // namespace
}  // namespace sluice::test
