// Whole training steps on a GPU against the CPU's.
#include <gtest/gtest.h>

#include "tests/support/engine_on.h"
#include "trainer/plan.h"

namespace sluice::test {
namespace {

TEST(EngineGpu, GradientsAgreeWithTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (const char* pattern : {"M-M-", "S-S-", "*-*-", "ME*E", "M-S*M-SEM-"}) {
    const Config config = small_config(pattern);
    EngineOn cpu(config, DType::f64, kCpu), gpu(config, DType::f32, kGpu);
    EXPECT_LE(norm_error(gpu.values(), cpu.values()), 1e-7) << pattern << ": initial values";
    const StepReport expected = cpu.step(), got = gpu.step();
    EXPECT_NEAR(got.loss / expected.loss, 1, 1e-6) << pattern;
    EXPECT_LE(norm_error(gpu.gradients(), cpu.gradients()), 3e-5) << pattern;
  }
}

// The same bits as on the CPU, for the padding's zeros too.
TEST(EngineGpu, InitialValuesAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const Config config = small_config("M*S-E");
  EngineOn cpu(config, DType::f32, kCpu), gpu(config, DType::f32, kGpu);
  EXPECT_EQ(gpu.values(), cpu.values());
}

// In bf16, from equal weights: the stream in f32 is closer to double arithmetic than one in bf16.
TEST(EngineGpu, ResidualStreamInF32IsMoreExact) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (const char* pattern : {"M-M*M-M-M*M-M-M*", "S-S-S-S-S-S-S-S-"}) {
    Config config = small_config(pattern);
    EngineOn exact(config, DType::f64, kCpu);
    exact.round_values();
    const double loss = exact.step().loss;
    const std::vector<double> expected = exact.gradients();
    double errors[2];
    for (const ResidualDType residual : {ResidualDType::f32, ResidualDType::model}) {
      config.model.residual = residual;
      EngineOn gpu(config, DType::bf16, kGpu);
      gpu.round_values();
      EXPECT_NEAR(gpu.step().loss / loss, 1, 1e-3);
      errors[int(residual)] = norm_error(gpu.gradients(), expected);
    }
    std::printf("%s: gradient's error with the residual stream in f32 %.2e, in bf16 %.2e\n",
                pattern, errors[0], errors[1]);
    EXPECT_LE(errors[0], 3e-2) << pattern;
    EXPECT_LT(errors[0], errors[1]) << pattern;
  }
}

// train.reproducible: layout. In eager steps and in a graph, with products that overwrite and
// gradients that add up.
TEST(EngineGpu, GradientsAreSummedInTheOrderOfTheTree) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Config config = small_config("M-S*-");
  config.train.reproducible = Reproducible::layout;
  const int64_t rows = config.train.micro_batch, all = config.train.global_batch;
  EngineOn whole(config, DType::f32, kGpu);
  ASSERT_EQ(whole.engine().num_micro_batches(), 4);
  config.train.global_batch = rows;
  EngineOn leaf(config, DType::f32, kGpu);
  for (int64_t step = 0; step < 4; ++step) {
    // From the same weights, and as a part of the same loss.
    const auto gradients = [&](EngineOn& on, int64_t first_row) {
      on.engine().step({.lr = 0,
                        .targets = on.rows().count_targets(step, all),
                        .next_batch = [&on, step, rows, row = first_row]() mutable {
                          return on.rows().batch(step, std::exchange(row, row + rows), rows, {});
                        }});
      return on.gradients();
    };
    const std::vector<double> got = gradients(whole, 0);
    std::vector<std::vector<double>> leaves;
    for (int64_t row = 0; row < all; row += rows) leaves.push_back(gradients(leaf, row));
    const auto of = [&](size_t i, size_t element) { return float(leaves[i][element]); };
    for (size_t k = 0; k < got.size(); ++k) {
      ASSERT_EQ(float(got[k]), (of(0, k) + of(1, k)) + (of(2, k) + of(3, k)))
          << "step " << step << ", element " << k;
    }
  }
}

// Batches that travel while the step before runs are the same batches.
TEST(EngineGpu, StagedBatchesChangeNoBit) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  constexpr int kSteps = 6;
  for (const bool graph : {false, true}) {
    Config config = small_config("M*-E");
    config.train.graph = graph;
    EngineOn plain(config, DType::f32, kGpu), staged(config, DType::f32, kGpu);
    for (int step = 0; step < kSteps; ++step) {
      const StepReport expected = plain.step();
      const StepReport got = staged.step(/*stage_next=*/step + 1 < kSteps);
      EXPECT_EQ(got.loss, expected.loss) << "step " << step;
      EXPECT_EQ(got.grad_norm, expected.grad_norm) << "step " << step;
    }
    EXPECT_EQ(staged.values(), plain.values());
  }
}

// What is allocated is what was planned, before and after steps: to 5 %. A card shows what all
// programs use of it, so one whose free memory is not in the end what it was tells nothing.
TEST(EngineGpu, TakesTheMemoryThatIsPlanned) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Config config = small_config("M-M*M-M*");
  config.device = DeviceChoice::cuda;
  config.precision = Precision::bf16;
  {
    EngineOn first(config, DType::bf16, kGpu);  // loads kernels and libraries
    for (int step = 0; step < 3; ++step) first.step(true);
  }
  config.model.d_model = 1536;
  config.model.vocab_size = 32000;
  config.model.stack.pattern = "M-M-M*M-M-M*";
  std::get<Mamba2Config>(config.model.sections) = {};
  std::get<AttentionConfig>(config.model.sections).heads = 12;
  std::get<MlpConfig>(config.model.sections).hidden = 4096;
  config.train.seq_len = 2048;
  config.train.micro_batch = 4;
  config.train.global_batch = 8;
  const double plan = double(make_plan(config, 1).memory());
  const double free = double(free_memory_of(kGpu));
  double at_start = 0, after = 0;
  {
    EngineOn engine(config, DType::bf16, kGpu);
    at_start = free - double(free_memory_of(kGpu));
    for (int step = 0; step < 3; ++step) engine.step(true);
    after = free - double(free_memory_of(kGpu));
  }
  const double left = std::fabs(free - double(free_memory_of(kGpu)));
  std::printf("memory: plan %.3f GiB, device %.3f GiB, after three steps %.3f GiB\n",
              plan / double(1 << 30), at_start / double(1 << 30), after / double(1 << 30));
  if (left > 0.01 * plan) GTEST_SKIP() << "another program uses the GPU";
  EXPECT_NEAR(at_start / plan, 1, 0.05);
  EXPECT_NEAR(after / plan, 1, 0.05);
}

}  // namespace
}  // namespace sluice::test
