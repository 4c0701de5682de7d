#include "kernels/grad_norm/grad_norm.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

// Sums are double: what is left is that the GPU's elements are f32, and they begin the same.
constexpr GpuBounds kBounds = {.f32 = 1e-12, .bf16 = 1e-12, .arena_bytes = size_t{1} << 16};

TEST(GradNormGpu, AgreesWithCpu) {
  for (const int64_t n : {1, 7, 4095, 4096, 4097, 200003}) {
    check_on_gpu(
        [n](Side& side) {
          const int64_t blocks = (n + kNormBlock - 1) / kNormBlock;
          block_squares(side.ctx(), {.x = side.stat_normal({n}, 1, 0.5),
                                     .sums = side.output("sums", {blocks}, DType::f64)});
        },
        kBounds);
  }
}

// Shards cut at blocks have the whole's bits, wherever they lie in memory.
TEST(GradNormGpu, AShardHasTheSameBits) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, size_t{1} << 20);
  const int64_t n = 5 * kNormBlock;
  std::vector<double> values(n + 1, 7.0);
  for (int64_t i = 0; i < n; ++i) values[i + 1] = random_normal({.seed = 3, .stream = 1}, i);
  const TensorView at_odd_place = side.values({n + 1}, DType::f32, values);
  values.erase(values.begin());
  const TensorView x = side.values({n}, DType::f32, values);
  const TensorView whole = side.output("whole", {5}, DType::f64);
  const TensorView shard = side.output("shard", {3}, DType::f64);
  const TensorView odd = side.output("odd", {5}, DType::f64);
  block_squares(side.ctx(), {.x = x, .sums = whole});
  block_squares(side.ctx(), {.x = x.columns(2 * kNormBlock, {n - 2 * kNormBlock}), .sums = shard});
  block_squares(side.ctx(), {.x = at_odd_place.columns(1, {n}), .sums = odd});
  const std::vector<double> all = side.download(whole);
  EXPECT_EQ(side.download(odd), all);
  EXPECT_EQ(side.download(shard), std::vector<double>(all.begin() + 2, all.end()));
}

TEST(GradNormGpu, NothingAndInfinity) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, size_t{1} << 20);
  const double infinity = std::numeric_limits<double>::infinity();
  const TensorView x = side.values({3}, DType::f32, {1, infinity, 2});
  const TensorView sums = side.output("sums", {1}, DType::f64);
  block_squares(side.ctx(), {.x = x.columns(0, {0}), .sums = sums.columns(0, {0})});
  block_squares(side.ctx(), {.x = x, .sums = sums});
  EXPECT_EQ(side.download(sums)[0], infinity);
}

TEST(OrderedSumGpu, AgreesWithCpu) {
  for (const int64_t n : {1, 100, 129, 70001}) {
    check_on_gpu(
        [n](Side& side) {
          std::vector<double> values(n), places(n);
          for (int64_t i = 0; i < n; ++i) {
            values[i] = random_uniform({.seed = 5, .stream = 1}, i);
            places[i] = double(i * 7919 % n);
          }
          ordered_sum(side.ctx(), {.values = side.values({n}, DType::f64, values),
                                   .places = side.values({n}, DType::i64, places),
                                   .sum = side.output("sum", {1}, DType::f64)});
        },
        kBounds);
  }
}

// Padding, of which there is more on more ranks.
TEST(OrderedSumGpu, ZerosAtTheEndChangeNoBit) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, size_t{1} << 22);
  for (const int64_t n : {1, 127, 2047, 2048, 40001}) {
    std::vector<double> expected;
    for (const int64_t more : {0, 1, 7, 2049}) {
      std::vector<double> values(n + more, 0), places(n + more);
      for (int64_t i = 0; i < n; ++i) values[i] = random_uniform({.seed = 5, .stream = 1}, i);
      for (int64_t i = 0; i < n + more; ++i) places[i] = double(i);
      const TensorView sum = side.output("sum", {1}, DType::f64);
      ordered_sum(side.ctx(), {.values = side.values({n + more}, DType::f64, values),
                               .places = side.values({n + more}, DType::i64, places),
                               .sum = sum});
      if (more == 0) expected = side.download(sum);
      EXPECT_EQ(side.download(sum), expected) << n << " values and " << more << " zeros";
    }
  }
}

// Clips, does not need to, may not, and refuses what is not finite.
TEST(ClipGradientGpu, AgreesWithCpu) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  struct Case {
    double clip, square, loss;
  };
  for (const Case& c : {Case{1, 9, 2}, Case{10, 9, 2}, Case{0, 9, 2}, Case{1, 9, nan}}) {
    check_on_gpu(
        [&c](Side& side) {
          clip_gradient(side.ctx(), {.squares = side.values({3}, DType::f64, {c.square, 4, 3}),
                                     .loss = side.values({1}, DType::f64, {c.loss}),
                                     .clip = c.clip,
                                     .norm = side.output("norm", {1}, DType::f64),
                                     .grad_scale = side.output("grad_scale", {1}, DType::f64),
                                     .apply = side.output("apply", {1}, DType::f64)});
        },
        kBounds);
  }
}

TEST(ClipGradientGpu, ANormThatIsNotFiniteIsNotApplied) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, size_t{1} << 16);
  for (const double square :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const TensorView apply = side.output("apply", {1}, DType::f64);
    clip_gradient(side.ctx(), {.squares = side.values({2}, DType::f64, {1, square}),
                               .loss = side.values({1}, DType::f64, {2}),
                               .clip = 1,
                               .norm = side.output("norm", {1}, DType::f64),
                               .grad_scale = side.output("grad_scale", {1}, DType::f64),
                               .apply = apply});
    EXPECT_EQ(side.download(apply)[0], 0);
  }
}

}  // namespace
}  // namespace sluice::test
