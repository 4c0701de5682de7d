// Generation and evaluation on a GPU against the CPU's.
#include <gtest/gtest.h>

#include "data/tokenizer.h"
#include "kernels/core/host_copy.h"
#include "parallel/self_communicator.h"
#include "tests/support/tiny_run.h"
#include "trainer/evaluation.h"
#include "trainer/generation.h"
#include "trainer/model_source.h"
#include "trainer/step_memory.h"

namespace sluice::test {
namespace {

constexpr Device kGpu{Device::Kind::cuda, 0};

LoadedModel new_model(const ModelConfig& config, Device device, DType dtype = DType::f32) {
  LoadedModel loaded;
  loaded.config = config;
  loaded.store = std::make_unique<ParameterStore>(DType::f32);
  loaded.model = std::make_unique<Model>(config, *loaded.store);
  loaded.store->freeze();
  loaded.store->initialise(4);
  return move_model(std::move(loaded), device, dtype);
}

std::vector<int32_t> text_of(const LoadedModel& loaded, const GenerationOptions& options) {
  const OwnedStream stream(loaded.model->device());
  std::vector<int32_t> text;
  const auto emit = [&](int32_t token) {
    text.push_back(token);
    return true;
  };
  generate(*loaded.model, {97, 98, 32, 99}, options, emit, stream);
  return text;
}

EvaluationResult loss_of(const LoadedModel& loaded, const std::string& path) {
  const Device device = loaded.model->device();
  const OwnedStream stream(device);
  const Place place{.device = device, .stream = stream};
  StepArenas arenas(count_evaluation(*loaded.model, 3, 24), place);
  const std::unique_ptr<Communicator> self = make_self_communicator(place);
  TokenStore store(path);
  return evaluate(arenas.context(), *loaded.model, store, Mesh(*self, {}),
                  {.seq_len = 24, .micro_batch = 3});
}

class InferenceGpu : public testing::TestWithParam<const char*> {};

TEST_P(InferenceGpu, WritesTheTextOfTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const TinyRun run(GetParam());
  const LoadedModel cpu = new_model(run.config.model, kCpu),
                    gpu = new_model(run.config.model, kGpu);
  for (const double temperature : {0.0, 0.8}) {
    const GenerationOptions options{.tokens = 80, .temperature = temperature, .seed = 3};
    const std::vector<int32_t> expected = text_of(cpu, options);
    EXPECT_EQ(expected.size(), 80u);
    EXPECT_EQ(text_of(gpu, options), expected) << "temperature " << temperature;
  }
}

TEST_P(InferenceGpu, FindsTheLossOfTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const TinyRun run(GetParam());
  const std::string store = run.folder.path() + "/valid.h5";
  const EvaluationResult expected = loss_of(new_model(run.config.model, kCpu), store);
  const EvaluationResult got = loss_of(new_model(run.config.model, kGpu), store);
  EXPECT_EQ(got.targets, expected.targets);
  EXPECT_NEAR(got.loss / expected.loss, 1, 1e-6);
  EXPECT_NEAR(got.bits_per_byte / expected.bits_per_byte, 1, 1e-6);
}

// Rounded parameters are those that were loaded, each in its own place.
TEST_P(InferenceGpu, FindsTheLossOfTheCpuInBf16) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const TinyRun run(GetParam());
  const std::string store = run.folder.path() + "/valid.h5";
  const LoadedModel cpu = new_model(run.config.model, kCpu);
  const LoadedModel gpu = new_model(run.config.model, kGpu, DType::bf16);
  const OwnedStream stream(kGpu);
  for (int32_t i = 0; i < int32_t(gpu.store->parameters().size()); ++i) {
    const TensorView expected = cpu.store->value({i});
    const HostCopy master(gpu.store->view(gpu.store->values(), {i}), stream);
    const HostCopy read(gpu.store->value({i}), stream);
    const bool rounded = read.view().dtype == DType::bf16;
    for (int64_t k = 0; k < expected.numel(); ++k) {
      const float value = expected.as<float>()[k];
      ASSERT_EQ(master.view().as<float>()[k], value) << gpu.store->parameter({i}).name;
      const float found = rounded ? float(read.view().as<bf16>()[k]) : read.view().as<float>()[k];
      ASSERT_EQ(found, rounded ? float(bf16(value)) : value);
    }
  }
  EXPECT_NEAR(loss_of(gpu, store).loss / loss_of(cpu, store).loss, 1, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Stacks, InferenceGpu, testing::Values("M-", "S-", "*-", "ME*-S"),
                         [](const auto& info) { return "stack" + std::to_string(info.index); });

}  // namespace
}  // namespace sluice::test
