// The six Hugging Face families on a GPU against transformers' own logits, loss and gradients.
#include <gtest/gtest.h>

#include "kernels/core/device_memory.h"
#include "tests/support/hf_scores.h"

namespace sluice::test {
namespace {

class HfFixturesGpu : public testing::TestWithParam<const char*> {};

TEST_P(HfFixturesGpu, LossLogitsAndGradients) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  constexpr Device kGpu{Device::Kind::cuda, 0};
  const ExpectedScores expected(GetParam());
  const OwnedStream stream(kGpu);
  expect_scores(move_model(load_model(expected.folder()), kGpu, DType::f32), expected, stream);
}

INSTANTIATE_TEST_SUITE_P(Families, HfFixturesGpu, testing::ValuesIn(kFamilies),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace sluice::test
