#include "trainer/trainer.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <set>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/support/errors.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"

namespace sluice::test {
namespace {

// Losses as hex floats and the parameters after `steps` steps on `dp` thread ranks.
struct Trace {
  std::vector<std::string> losses;
  Tensor values;
};

// Without padding, which depends on the number of ranks.
Tensor parameters_of(const ParameterStore& store) {
  Tensor all({store.num_elements()}, store.dtype());
  int64_t at = 0;
  for (int32_t i = 0; i < int32_t(store.parameters().size()); ++i) {
    const TensorView value = store.value({i});
    std::copy_n(value.as<float>(), value.numel(), all.view().as<float>() + at);
    at += value.numel();
  }
  return all;
}

Trace train(const Config& config, int dp, int64_t steps) {
  std::vector<Trace> traces(dp);
  run_ranks(dp, [&](Communicator& world) {
    Mesh mesh(world, {.dp = dp});
    Trainer trainer(config, mesh);
    Trace& trace = traces[world.rank()];
    for (int64_t i = 0; i < steps; ++i)
      trace.losses.push_back(fmt::format("{:a}", trainer.step().loss));
    trace.values = parameters_of(trainer.store());
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

// Whatever of the state is sharded: the sums have one order, and so has the norm.
TEST_P(TrainerStacks, ShardedStateGivesEqualBitsFor50Steps) {
  TinyRun run(GetParam());
  run.config.train.steps = 50;
  run.config.train.micro_batch = 1;
  const Trace one = train(run.config, 1, 50);
  for (const int64_t zero : {0, 2}) {
    run.config.parallel.zero = zero;
    for (const int dp : {2, 4}) {
      const Trace many = train(run.config, dp, 50);
      EXPECT_EQ(many.losses, one.losses) << "zero " << zero << ", dp " << dp;
      EXPECT_TRUE(bit_equal(many.values, one.values)) << "zero " << zero << ", dp " << dp;
    }
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

TEST(MicroBatches, ThatDoNotDealOutAreRefused) {
  const TinyRun run;
  TrainConfig train = run.config.train;
  train.micro_batch = 3;
  expect_error<UsageError>([&] { deal_micro_batches(train, 1, 1); },
                           {"train.global_batch 8", "train.micro_batch 3", "dp 1 = 3"});
  train.micro_batch = 4;
  expect_error<UsageError>([&] { deal_micro_batches(train, 1, 4); },
                           {"train.global_batch 8", "train.micro_batch 4", "dp 4 = 16"});
}

TEST(MicroBatches, AreDealtOnceEach) {
  const TinyRun run;
  TrainConfig train = run.config.train;
  train.global_batch = 24;
  for (const int64_t zero : {0, 1, 2}) {
    for (const int64_t dp : {1, 2, 3, 4}) {
      const MicroBatches dealt = deal_micro_batches(train, zero, dp);
      std::set<int64_t> indices;
      for (int64_t rank = 0; rank < dp; ++rank) {
        for (int64_t i = 0; i < dealt.count; ++i) indices.insert(dealt.index(rank, i));
      }
      EXPECT_EQ(int64_t(indices.size()), dp * dealt.count);
      EXPECT_EQ(*indices.begin(), 0);
      EXPECT_EQ(*indices.rbegin(), 11);
    }
  }
  EXPECT_EQ(deal_micro_batches(train, 1, 3).index(1, 1), 5);
  EXPECT_EQ(deal_micro_batches(train, 2, 3).index(1, 1), 4);
}

// Before anything is allocated, and on every rank.
TEST(Trainer, LayoutsThatCannotBeAreRefused) {
  TinyRun run;
  const auto build_on = [&](const MeshShape& shape) {
    run_ranks(shape.world(), [&](Communicator& world) {
      const Mesh mesh(world, shape);
      Trainer(run.config, mesh);
    });
  };
  std::get<MoeConfig>(run.config.model.sections).experts = 3;
  expect_error<UsageError>([&] { build_on({.dp = 2, .ep = 2}); }, {"3 experts", "ep 2"});
  std::get<MoeConfig>(run.config.model.sections).experts = 4;
  run.config.train.seq_len = 2;
  expect_error<UsageError>([&] { build_on({.cp = 3}); }, {"2 tokens", "3 sequence ranks"});
  expect_error<UsageError>([&] { resolve_mesh({.dp = 4, .cp = 2}, 6); },
                           {"8 ranks", "6 were started", "dp 3 x ep 1 x cp 2"});
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
  const Tensor moments = copy_of(trainer.optimizer().exp_avg().data);
  const StepReport bad = trainer.step();
  EXPECT_FALSE(bad.finite);
  EXPECT_EQ(trainer.optimizer().t(), 1);
  EXPECT_EQ(trainer.steps_done(), 2);
  EXPECT_TRUE(bit_equal(copy_of(trainer.optimizer().exp_avg().data), moments));
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
