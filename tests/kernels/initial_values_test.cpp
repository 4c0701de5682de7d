#include "kernels/initial_values/initial_values.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

using Kind = Initializer::Kind;

constexpr RngKey kKey{.seed = 3, .stream = 11};

const std::vector<Initializer> kAll = {
    {.kind = Kind::constant, .a = 0.5},  {.kind = Kind::normal, .a = 0.02},
    {.kind = Kind::uniform, .a = 0.125}, {.kind = Kind::log_uniform, .a = 1, .b = 16},
    {.kind = Kind::log_column, .a = 16}, {.kind = Kind::softplus_inv, .a = -7, .b = -2, .c = 1e-2}};

Tensor draw(const Initializer& initializer, int64_t first, int64_t count, DType dtype) {
  TestContext ctx(0);
  Tensor values({count}, dtype);
  initial_values(ctx, {.initializer = initializer, .key = kKey, .first = first, .values = values});
  return values;
}

TEST(InitialValues, FollowTheirFormulas) {
  for (int64_t i = 0; i < 2000; ++i) {
    const double u = random_uniform(kKey, i), z = random_normal(kKey, i);
    EXPECT_EQ(kAll[0](kKey, i), 0.5);
    EXPECT_EQ(kAll[1](kKey, i), 0.02 * z);
    EXPECT_EQ(kAll[2](kKey, i), 0.125 * (2 * u - 1));
    EXPECT_NEAR(std::exp(kAll[3](kKey, i)), 1 + 15 * u, 1e-13);
    EXPECT_NEAR(std::exp(kAll[4](kKey, i)), double(i % 16 + 1), 1e-13);
    const double x = std::max(1e-2, std::exp(-7 + 5 * u));
    EXPECT_NEAR(std::log1p(std::exp(kAll[5](kKey, i))), x, 1e-13);
  }
}

// Elements are what they are one by one, whatever the block, thread or processor.
TEST(InitialValues, HaveTheSameBitsOneByOne) {
  const int threads = omp_get_max_threads();
  for (const int count_of_threads : {1, 2}) {
    omp_set_num_threads(count_of_threads);
    for (const Initializer& initializer : kAll) {
      for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
               {0, 1}, {0, 40000}, {16383, 3}, {(int64_t{1} << 33) + 5, 17000}}) {
        const Tensor wide = draw(initializer, first, count, DType::f64);
        const Tensor narrow = draw(initializer, first, count, DType::f32);
        for (int64_t i = 0; i < count; ++i) {
          const double expected = initializer(kKey, first + i);
          ASSERT_EQ(wide.get(i), expected) << int(initializer.kind) << " element " << first + i;
          ASSERT_EQ(narrow.get(i), float(expected)) << int(initializer.kind);
        }
      }
    }
  }
  omp_set_num_threads(threads);
}

TEST(InitialValues, RefuseStridedAndRoundedTensors) {
  TestContext ctx(0);
  const Tensor strided({2, 3}, DType::f32, 1);
  EXPECT_THROW(initial_values(ctx, {.values = strided}), Error);
  const Tensor whole({4}, DType::i32);
  EXPECT_THROW(initial_values(ctx, {.values = whole}), Error);
}

}  // namespace
}  // namespace sluice::test
