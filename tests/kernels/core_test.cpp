#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/core/arena.h"
#include "kernels/core/cuda_state.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/fast_math.h"
#include "kernels/core/rng.h"
#include "kernels/core/row_blocks.h"
#include "kernels/core/threads.h"

namespace sluice {
namespace {

using Words4 = std::array<uint32_t, 4>;

// The known answers that the authors of Philox publish with their reference implementation.
TEST(Philox, KnownAnswers) {
  constexpr uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({ones, ones, ones, ones}, {ones, ones}),
            (Words4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, CounterIsIndexAndStream) {
  const RngKey key{.seed = 0x299f31d0a4093822, .stream = 0x0370734413198a2e};
  EXPECT_EQ(random_bits(key, 0x85a308d3243f6a88),
            (Words4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CudaState, TellsWhyThereIsNoGpu) {
  const auto said = [](const CudaState& state, const char* part) {
    return why_no_cuda_device(state).find(part) != std::string::npos;
  };
  const CudaState old{.build = 13000, .driver = 12080, .driver_is_old = true, .error = "old"};
  EXPECT_TRUE(said(old, "driver supports CUDA up to 12.8, this build has 13.0"));
  EXPECT_TRUE(said(old, "update the driver, or build with an older CUDA"));
  EXPECT_TRUE(said({.build = 13000, .driver_is_old = true}, "no GPU driver is installed"));
  EXPECT_TRUE(said({.build = 13000, .driver = 13000}, "no GPU is found"));
  EXPECT_TRUE(said({.build = 13000, .driver = 13010, .error = "broken"}, "cannot be used: broken"));
}

TEST(Random, HashOfNames) {  // FNV-1a's published test values
  EXPECT_EQ(hash_name(""), 0xcbf29ce484222325u);
  EXPECT_EQ(hash_name("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(hash_name("foobar"), 0x85944171f73967e8u);
}

TEST(Random, UniformStaysInsideAndFillsEvenly) {
  const RngKey key{.seed = 7, .stream = 1};
  constexpr int64_t kDraws = 100000, kBins = 20;
  std::array<int64_t, kBins> bins{};
  for (int64_t i = 0; i < kDraws; ++i) {
    const double u = random_uniform(key, i);
    ASSERT_TRUE(u > 0 && u < 1);
    ++bins[int64_t(u * kBins)];
  }
  double chi_square = 0;
  for (const int64_t count : bins) {
    const double difference = double(count) - double(kDraws) / kBins;
    chi_square += difference * difference / (double(kDraws) / kBins);
  }
  EXPECT_LT(chi_square, 43.8);  // 19 degrees of freedom, p = 0.001
  EXPECT_GT(chi_square, 5.4);   // p = 0.999: too even is wrong as well
}

TEST(Random, BelowReachesEveryValue) {
  const RngKey key{.seed = 7, .stream = 2};
  std::set<uint64_t> seen;
  for (int64_t i = 0; i < 1000; ++i) {
    const uint64_t value = random_below(key, i, 13);
    ASSERT_LT(value, 13u);
    seen.insert(value);
  }
  EXPECT_EQ(seen.size(), 13u);
  EXPECT_EQ(random_below(key, 0, 1), 0u);
}

double normal_below(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// random_normal is the inverse of the distribution function at random_uniform, far into both tails.
TEST(Random, NormalInvertsTheDistributionFunction) {
  const RngKey key{.seed = 11, .stream = 3};
  for (int64_t i = 0; i < 20000; ++i) {
    const double u = random_uniform(key, i), x = random_normal(key, i);
    // The condition of the inverse: dp/dx = density.
    const double density = std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
    const double p = x < 0 ? normal_below(x) - u : (1 - u) - normal_below(-x);
    ASSERT_NEAR(p / density, 0, 4e-15 * (1 + std::fabs(x)) / std::min(1.0, 10 * density))
        << "u " << u << " x " << x;
  }
}

TEST(Random, NormalHasTheRightDistribution) {
  const RngKey key{.seed = 12, .stream = 4};
  constexpr int64_t kDraws = 50000;
  std::vector<double> draws(kDraws);
  for (int64_t i = 0; i < kDraws; ++i) draws[i] = random_normal(key, i);
  std::sort(draws.begin(), draws.end());
  double distance = 0;  // Kolmogorov and Smirnov's
  for (int64_t i = 0; i < kDraws; ++i) {
    const double p = normal_below(draws[i]);
    distance = std::max({distance, p - double(i) / kDraws, double(i + 1) / kDraws - p});
  }
  EXPECT_LT(distance * std::sqrt(double(kDraws)), 1.95);  // p = 0.001
}

TEST(Random, FixedLogAndExpAgreeWithLibm) {
  for (double x = 1e-300; x < 1e300; x *= 1.37) {
    ASSERT_NEAR(fixed_log(x), std::log(x), 4e-16 * (1 + std::fabs(std::log(x)))) << x;
  }
  for (int i = -1000; i <= 1000; ++i) {  // around 1, where the result is small
    const double x = 1 + i * 1e-6;
    ASSERT_NEAR(fixed_log(x), std::log(x), 5e-16 * std::fabs(std::log(x))) << x;
  }
  for (double x = -699.9; x < 700; x += 0.0917) {
    ASSERT_NEAR(fixed_exp(x) / std::exp(x), 1, 1e-15) << x;
  }
  EXPECT_EQ(fixed_exp(0), 1);
  EXPECT_EQ(fixed_log(1), 0);
}

TEST(FastMath, AgreesWithLibm) {
  for (float x = -86.9f; x < 88.7f; x += 0.00317f) {
    const double exact = x;
    const double sigmoid = 1 / (1 + std::exp(-exact));
    const SoftplusF softplus = fast_softplus_slope(x);
    ASSERT_NEAR(fast_exp(x) / std::exp(exact), 1, 2e-7) << x;
    ASSERT_NEAR(softplus.value / fast_softplus(exact), 1, 3e-7) << x;
    ASSERT_NEAR(softplus.slope / sigmoid, 1, 3e-7) << x;
    ASSERT_NEAR(fast_sigmoid(x) / sigmoid, 1, 3e-7) << x;
    ASSERT_NEAR(fast_silu(x), exact * sigmoid, 3e-7 * std::fabs(exact * sigmoid)) << x;
    ASSERT_NEAR(silu_slope(x, fast_sigmoid(x)), sigmoid * (1 + exact * (1 - sigmoid)), 1e-6) << x;
  }
  for (float x = -125; x <= 20; x += 0.00317f) {
    ASSERT_NEAR(fast_exp2_decay(x) / std::exp2(double(x)), 1, 2e-7) << x;
  }
}

TEST(FastMath, Extremes) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(fast_exp(0.0f), 1);
  EXPECT_EQ(fast_exp(-infinity), 0);
  EXPECT_EQ(fast_exp(-1e30f), 0);
  EXPECT_EQ(fast_exp(infinity), infinity);
  EXPECT_EQ(fast_exp(100.0f), infinity);
  EXPECT_EQ(fast_exp2_decay(0.0f), 1);
  EXPECT_EQ(fast_exp2_decay(-infinity), 0x1p-125f);
  EXPECT_EQ(fast_softplus(1e30f), 1e30f);
  EXPECT_EQ(fast_sigmoid(-infinity), 0);
  EXPECT_EQ(fast_sigmoid(infinity), 1);
  for (const float value : {fast_exp(nan), fast_exp2_decay(nan), fast_softplus(nan),
                            fast_softplus_slope(nan).slope, fast_sigmoid(nan), fast_silu(nan)}) {
    EXPECT_TRUE(std::isnan(value));
  }
}

TEST(TensorView, RowsOfEveryRank) {
  float data[1] = {};
  EXPECT_EQ(TensorView(data, {5}).rows(), 1);
  EXPECT_EQ(TensorView(data, {5, 3}).rows(), 5);
  const TensorView view(data, {2, 3, 4, 5, 6});
  EXPECT_EQ(view.rows(), 6);
  EXPECT_EQ(view.row_size(), 120);
  EXPECT_EQ(view.row_stride, 120);
  EXPECT_EQ(view.numel(), 720);
  EXPECT_TRUE(view.packed());
  EXPECT_FALSE(bool(TensorView()));
  EXPECT_EQ(to_string(view.dims), "(2, 3, 4, 5, 6)");
  EXPECT_EQ(view.matrix().dims, (Dims{6, 120}));
}

TEST(TensorView, ColumnsAreSlicesOfEveryRow) {
  float data[2 * 3 * 10];
  for (int i = 0; i < 60; ++i) data[i] = float(i);
  const TensorView view(data, {2, 3, 10});
  const TensorView part = view.columns(4, {2, 3});
  EXPECT_EQ(part.dims, (Dims{2, 3, 2, 3}));
  EXPECT_EQ(part.row_stride, 10);
  EXPECT_FALSE(part.packed());
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(part.row<float>(row)[i], float(row * 10 + 4 + i));
  }
  EXPECT_EQ(part.matrix().dims, (Dims{6, 6}));
  EXPECT_EQ(part.matrix().row_stride, 10);
  EXPECT_THROW(view.columns(8, {3}), Error);
  EXPECT_THROW(view.columns(-1, {3}), Error);
  EXPECT_THROW(part.reshape({36}), Error);
}

TEST(TensorView, SlicesAndRanges) {
  float data[4 * 3 * 10];
  for (int i = 0; i < 120; ++i) data[i] = float(i);
  const TensorView view(data, {4, 3, 10});
  const TensorView matrix = view.columns(2, {5}).slice(2);  // strided rows stay so
  EXPECT_EQ(matrix.dims, (Dims{3, 5}));
  EXPECT_EQ(matrix.row<float>(1)[0], float(2 * 30 + 10 + 2));
  const TensorView rows = matrix.row_range(1, 2);
  EXPECT_EQ(rows.dims, (Dims{2, 5}));
  EXPECT_EQ(rows.row<float>(1)[4], float(2 * 30 + 20 + 6));
  EXPECT_EQ(rows.row_range(2, 0).rows(), 0);
  EXPECT_THROW(rows.row_range(1, 2), Error);
  EXPECT_THROW(view.row_range(0, 1), Error);
  EXPECT_THROW(view.slice(4), Error);
  const TensorView deep(data, {2, 3, 4, 5});
  EXPECT_EQ(deep.slice(1).dims, (Dims{3, 4, 5}));
  EXPECT_EQ(deep.slice(1).row_stride, 5);
  EXPECT_EQ(deep.slice(1).as<float>()[0], 60);
  EXPECT_EQ(TensorView(data, {12, 10}).slice(7).as<float>()[3], 73);
  EXPECT_EQ(view.reshape({12, 10}).row<float>(5)[1], 51);
  EXPECT_THROW(view.reshape({11, 10}), Error);
}

TEST(TensorView, NullStaysNull) {
  const TensorView view(nullptr, {4, 3, 10}, DType::f32);
  EXPECT_EQ(view.columns(3, {2}).data, nullptr);
  EXPECT_EQ(view.slice(3).data, nullptr);
  EXPECT_TRUE(bool(view));
}

TEST(TensorView, RefusesAnotherTypeAndSaysWhatItGot) {
  float data[6] = {};
  const TensorView view(data, {2, 3});
  EXPECT_THROW(view.as<double>(), Error);
  EXPECT_THROW(view.shape<3>("x: (B, T, E)"), Error);
  EXPECT_THROW(expect("x", view, {2, 3}, DType::f64, kCpu), Error);
  EXPECT_THROW(expect("x", view, {2, 3}, DType::f32, {Device::Kind::cuda, 0}), Error);
  EXPECT_NO_THROW(expect("x", view, {2, 3}, DType::f32, kCpu));
  try {
    expect("weights", view, {3, 2}, DType::f32, kCpu);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bug);
    for (const char* part : {"weights", "(3, 2)", "(2, 3)"}) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

TEST(Arena, HandsOutAlignedMemoryAndTakesItBack) {
  Arena arena("test", 4 * kAlignment, kCpu);
  const TensorView a = arena.alloc({3, 5}, DType::f32);
  const Arena::Mark mark = arena.mark();
  const TensorView b = arena.alloc({65}, DType::f32);  // one element above a line
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data) % kAlignment, 0u);
  EXPECT_EQ(static_cast<char*>(b.data) - static_cast<char*>(a.data), ptrdiff_t(kAlignment));
  EXPECT_EQ(arena.used(), 3 * kAlignment);
  arena.release(mark);
  EXPECT_EQ(arena.used(), kAlignment);
  EXPECT_EQ(arena.peak(), 3 * kAlignment);
  EXPECT_EQ(arena.alloc({2}, DType::f64).data, b.data);
  {
    const ArenaScope scope(arena);
    arena.alloc({1}, DType::u8);
    EXPECT_EQ(arena.used(), 3 * kAlignment);
  }
  EXPECT_EQ(arena.used(), 2 * kAlignment);
}

TEST(Arena, NamesItselfWhenItIsTooSmall) {
  Arena arena("scratch", kAlignment, kCpu);
  EXPECT_NO_THROW(arena.alloc({int64_t(kAlignment)}, DType::u8));
  try {
    arena.alloc({1}, DType::u8);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("scratch"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("512"), std::string::npos) << error.what();
  }
  EXPECT_EQ(arena.used(), kAlignment);  // the failed request left nothing behind
}

TEST(Arena, PaddedRowsFillWholeLines) {
  Arena arena("test", 4096, kCpu);
  const TensorView view = arena.alloc_padded_rows({2, 3, 17}, DType::f32);
  EXPECT_EQ(view.row_stride, 32);
  EXPECT_EQ(view.dims, (Dims{2, 3, 17}));
  EXPECT_EQ(arena.used(), align_up(6 * 32 * sizeof(float)));
}

// The same requests on both: equal marks, equal peak, and no memory behind the counting one.
TEST(Arena, CountingTwinMeasuresTheSame) {
  Arena counting = Arena::counting("twin", kCpu), real("twin", 1 << 16, kCpu);
  for (Arena* arena : {&counting, &real}) {
    const Arena::Mark mark = arena->mark();
    for (int64_t i = 1; i < 20; ++i) arena->alloc({i, 7}, DType::f64);
    arena->release(mark);
    arena->alloc_padded_rows({5, 33}, DType::f32);
  }
  EXPECT_TRUE(counting.counting() && !real.counting());
  EXPECT_EQ(counting.peak(), real.peak());
  EXPECT_EQ(counting.used(), real.used());
  const TensorView view = counting.alloc({2, 3}, DType::f32);
  EXPECT_EQ(view.data, nullptr);
  EXPECT_EQ(view.dims, (Dims{2, 3}));
}

TEST(Buffer, IsZeroedAndMovable) {
  Buffer buffer(1000, kCpu);
  const char* const bytes = static_cast<const char*>(buffer.data());
  EXPECT_TRUE(std::all_of(bytes, bytes + 1000, [](char byte) { return byte == 0; }));
  Buffer moved = std::move(buffer);
  EXPECT_EQ(moved.data(), bytes);
  EXPECT_EQ(moved.bytes(), 1000u);
  EXPECT_EQ(Buffer().data(), nullptr);
#ifndef __SANITIZE_ADDRESS__  // whose allocator ends the process instead
  EXPECT_THROW(Buffer(size_t{1} << 60, kCpu), IoError);
#endif
}

TEST(Dispatch, ChoosesTheType) {
  const auto size = [](DType dtype) {
    return dispatch_float(dtype, []<class T>() { return sizeof(T); });
  };
  EXPECT_EQ(size(DType::f32), 4u);
  EXPECT_EQ(size(DType::f64), 8u);
  for (const DType dtype : {DType::bf16, DType::i64, DType::i32, DType::u16, DType::u8}) {
    EXPECT_THROW(size(dtype), Error) << name_of(dtype);
  }
  EXPECT_EQ(stat_dtype(DType::bf16), DType::f32);
  EXPECT_EQ(stat_dtype(DType::f64), DType::f64);
}

TEST(RowBlocks, CoverEveryRowOnce) {
  for (const int64_t rows : {0, 1, 31, 32, 33, 1000}) {
    const RowBlocks blocks(rows);
    EXPECT_LE(blocks.count, 32);
    EXPECT_EQ(blocks.begin(0), 0);
    EXPECT_EQ(blocks.end(blocks.count - 1), rows);
    for (int64_t block = 1; block < blocks.count; ++block) {
      EXPECT_EQ(blocks.begin(block), blocks.end(block - 1));
      EXPECT_LT(blocks.begin(block), blocks.end(block));
    }
  }
}

TEST(Threads, PoolSizes) {
  const int before = num_threads();
  set_num_threads(3);
  EXPECT_EQ(num_threads(), 3);
  EXPECT_THROW(set_num_threads(0), Error);
  set_num_threads(before);
  EXPECT_GE(default_num_threads(1), 1);
  EXPECT_EQ(default_num_threads(1 << 20), 1);
}

TEST(Check, SaysWhereAndWhat) {
  try {
    SLUICE_CHECK(1 + 1 == 3, "expected ", 3, ", got ", 2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bug);
    for (const char* part : {"core_test.cpp:", "expected 3, got 2", "1 + 1 == 3"}) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(UsageError("x").code(), ExitCode::usage);
  EXPECT_EQ(DataError("x").code(), ExitCode::data);
  EXPECT_EQ(IoError("x").code(), ExitCode::io);
}

}  // namespace
}  // namespace sluice
