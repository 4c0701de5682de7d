#include "trainer/trainer.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"

namespace sluice::test {
namespace {

// Losses as hex floats and the parameters after `steps` steps on `dp` thread ranks.
struct Trace {
  std::vector<std::string> losses;
  Tensor values;
};

Trace train(const Config& config, int dp, int64_t steps) {
  std::vector<Trace> traces(dp);
  run_ranks(dp, [&](Communicator& world) {
    Mesh mesh(world, {.dp = dp});
    Trainer trainer(config, mesh);
    Trace& trace = traces[world.rank()];
    for (int64_t i = 0; i < steps; ++i)
      trace.losses.push_back(fmt::format("{:a}", trainer.step().loss));
    trace.values = copy_of(trainer.store().values());
  });
  for (int rank = 1; rank < dp; ++rank) {
    EXPECT_EQ(traces[rank].losses, traces[0].losses);
    EXPECT_TRUE(bit_equal(traces[rank].values, traces[0].values)) << "rank " << rank;
  }
  return std::move(traces[0]);
}

class TrainerStacks : public testing::TestWithParam<const char*> {};

TEST_P(TrainerStacks, DataParallelRanksGiveEqualBitsFor50Steps) {
  TinyRun run(GetParam());
  run.config.train.steps = 50;
  const Trace one = train(run.config, 1, 50);
  for (const int dp : {2, 4}) {
    const Trace many = train(run.config, dp, 50);
    EXPECT_EQ(many.losses, one.losses) << "dp " << dp;
    EXPECT_TRUE(bit_equal(many.values, one.values)) << "dp " << dp;
  }
}

TEST_P(TrainerStacks, LossFalls) {
  TinyRun run(GetParam());
  run.config.train.steps = 60;
  const Trace trace = train(run.config, 1, 60);
  EXPECT_LT(std::stod(trace.losses.back()), 0.7 * std::stod(trace.losses.front()));
}

TEST_P(TrainerStacks, RecomputationChangesNoBit) {
  TinyRun run(GetParam());
  const Trace plain = train(run.config, 1, 5);
  run.config.train.recompute = Recompute::full;
  EXPECT_EQ(train(run.config, 1, 5).losses, plain.losses);
}

INSTANTIATE_TEST_SUITE_P(Stacks, TrainerStacks, testing::Values("M-", "SE", "ME*-"),
                         [](const auto& info) { return "stack" + std::to_string(info.index); });

TEST(Trainer, MicroBatchesThatDoNotDealOutAreRefused) {
  TinyRun run;
  run.config.train.micro_batch = 3;
  EXPECT_THROW(step_shape(run.config.train, 1, 0), UsageError);
  run.config.train.micro_batch = 4;
  EXPECT_THROW(step_shape(run.config.train, 4, 0), UsageError);
  EXPECT_EQ(step_shape(run.config.train, 2, 1).first_row, 4);
}

TEST(Trainer, AVocabularyTooSmallForTheStoreIsRefused) {
  TinyRun run;
  run.config.model.vocab_size = 200;
  const auto world = make_self_communicator();
  Mesh mesh(*world, {});
  EXPECT_THROW(Trainer(run.config, mesh), UsageError);
}

// A step whose gradient is not finite leaves parameters and moments as they were.
TEST(Trainer, StepsThatAreNotFiniteAreNotApplied) {
  TinyRun run;
  const auto world = make_self_communicator();
  Mesh mesh(*world, {});
  Trainer trainer(run.config, mesh);
  trainer.step();
  const ParameterId norm = trainer.store().find("final_norm.weight");
  float& weight = *trainer.store().value(norm).as<float>();
  const float before = weight;
  weight = std::numeric_limits<float>::quiet_NaN();
  const Tensor values = copy_of(trainer.store().values());
  const Tensor moments = copy_of(trainer.optimizer().exp_avg());
  const StepReport bad = trainer.step();
  EXPECT_FALSE(bad.finite);
  EXPECT_EQ(trainer.optimizer().t(), 1);
  EXPECT_EQ(trainer.steps_done(), 2);
  EXPECT_TRUE(bit_equal(copy_of(trainer.optimizer().exp_avg()), moments));
  weight = before;
  EXPECT_TRUE(trainer.step().finite);
  EXPECT_EQ(trainer.optimizer().t(), 2);
}

TEST(Trainer, EvaluationDoesNotDependOnTheRanks) {
  TinyRun run;
  const auto evaluate_on = [&](int dp) {
    std::vector<EvaluationResult> results(dp);
    run_ranks(dp, [&](Communicator& world) {
      Mesh mesh(world, {.dp = dp});
      Trainer trainer(run.config, mesh);
      results[world.rank()] = trainer.evaluate_held_out();
    });
    return results[0];
  };
  const EvaluationResult one = evaluate_on(1);
  EXPECT_GT(one.bits_per_byte, 0);
  for (const int dp : {2, 4}) {
    const EvaluationResult many = evaluate_on(dp);
    EXPECT_EQ(many.loss, one.loss);
    EXPECT_EQ(many.targets, one.targets);
  }
}

}  // namespace
}  // namespace sluice::test
