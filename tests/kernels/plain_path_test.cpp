// What operators say of shapes that miss a GPU's fast kernels.
#include "kernels/core/plain_path.h"

#include <gtest/gtest.h>

#include "kernels/activation/activation.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/core/packs.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/selective_scan/selective_scan.h"
#include "kernels/token_permute/token_permute.h"

namespace sluice::test {
namespace {

constexpr Device kGpu{Device::Kind::cuda, 0};
constexpr DType kBf16 = DType::bf16;

// Nothing of the shape that is taken, nor on a CPU; a cost above 1 of the other.
template <class Describe>
void expect_told(Describe&& describe, int64_t taken, int64_t missed) {
  EXPECT_EQ(describe(kGpu, kBf16, taken), "");
  EXPECT_EQ(describe(kCpu, kBf16, missed), "");
  const std::string text = describe(kGpu, kBf16, missed), about = "about ";
  const size_t begin = text.find(about);
  ASSERT_NE(begin, std::string::npos) << missed << ": " << text;
  EXPECT_NE(text.find(" times as long as "), std::string::npos) << text;
  EXPECT_NE(text.find(std::to_string(missed)), std::string::npos) << text;
  EXPECT_GT(std::stod(text.substr(begin + about.size())), 1) << text;
}

TEST(PlainPath, IsToldWithItsCost) {
  const auto norm = [](DType residual) {
    return [=](Device device, DType dtype, int64_t D) {
      return describe_norm(device, residual, dtype, D);
    };
  };
  for (const int64_t D : {2052, 2050, 7, 8200}) {
    expect_told(norm(kBf16), 2048, D);
    expect_told(describe_gated_norm, 8192, D);
  }
  expect_told(norm(DType::f32), 2052, 2050);
  for (const int64_t D : {2052, 2050, 7}) {
    expect_told(describe_activation, 8200, D);
    expect_told(describe_embedding, 8200, D);
    expect_told(describe_permutation, 8200, D);
    expect_told([](Device device, DType dtype,
                   int64_t F) { return describe_experts(device, dtype, 64, F); },
                2048, D);
    expect_told(
        [](Device device, DType dtype, int64_t D) {
          return describe_products(device, dtype, {64, D, 128});
        },
        2048, D);
  }
}

TEST(PlainPath, OfMixersIsToldWithItsCost) {
  for (const int64_t hd : {12, 124}) {
    expect_told(
        [](Device device, DType dtype, int64_t hd) { return describe_rope(device, dtype, hd, hd); },
        128, hd);
  }
  EXPECT_EQ(describe_rope(kGpu, kBf16, 12, 0), "");
  const auto ssd = [](int64_t SsdSizes::*size) {
    return [=](Device device, DType dtype, int64_t value) {
      SsdSizes sizes{.P = 64, .N = 128, .chunk = 128, .T = 4096};
      sizes.*size = value;
      return describe_ssd(device, dtype, sizes);
    };
  };
  for (const int64_t N : {64, 96, 256}) expect_told(ssd(&SsdSizes::N), 128, N);
  for (const int64_t P : {48, 128}) expect_told(ssd(&SsdSizes::P), 64, P);
  for (const int64_t Q : {8, 32, 96, 512}) expect_told(ssd(&SsdSizes::chunk), 256, Q);
  EXPECT_EQ(ssd(&SsdSizes::T)(kGpu, kBf16, 100), "");
  for (const int64_t N : {24, 128}) {
    expect_told([](Device device, DType dtype,
                   int64_t N) { return describe_scan(device, dtype, 4096, N, 128); },
                16, N);
  }
  const auto convolution = [](Device device, DType, int64_t C) {
    return describe_convolution(device, C, 4, 64);
  };
  expect_told(convolution, 4352, 4354);
  EXPECT_NE(describe_convolution(kGpu, 4352, 3, 0), "");
  EXPECT_NE(describe_convolution(kGpu, 4352, 4, 62), "");
}

// The further from 16 bytes, the slower.
TEST(PlainPath, ProductsTellByTheWorstOfTheirRows) {
  const auto factor = [](std::initializer_list<int64_t> widths) {
    const std::string text = describe_products(kGpu, kBf16, widths), about = "about ";
    return std::stod(text.substr(text.find(about) + about.size()));
  };
  EXPECT_LE(factor({2048, 2052}), factor({2052, 2050}));
  EXPECT_LE(factor({2050, 2052}), factor({2049, 2048}));
  EXPECT_EQ(factor({2048, 2049}), factor({2049, 2050}));
}

TEST(PlainPath, PacksAreOfPointersStridesAndRows) {
  alignas(16) float memory[64] = {};
  const TensorView rows(memory, {4, 16});
  EXPECT_TRUE(in_packs(rows));
  EXPECT_TRUE(in_packs(rows.columns(4, {8})));
  EXPECT_FALSE(in_packs(rows.columns(2, {8})));
  EXPECT_FALSE(in_packs(rows.columns(4, {6})));
  EXPECT_FALSE(in_packs(TensorView(memory, {4, 14}).columns(0, {8})));
}

TEST(PlainPath, DescriptionsAreJoined) {
  EXPECT_EQ(joined("", ""), "");
  EXPECT_EQ(joined("", "b"), "b");
  EXPECT_EQ(joined("a", "", "c"), "a; c");
}

}  // namespace
}  // namespace sluice::test
