// A MoE layer on many layouts against one rank, and one rank against a loop over tokens.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "parallel/planned_communicator.h"
#include "tests/layers/ffn/moe_layouts.h"
#include "tests/parallel/delayed_communicator.h"
#include "tests/support/errors.h"

namespace sluice::test {
namespace {

struct Variant {
  std::string name;
  std::function<void(MoeProblem&)> edit;
};
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

MoeProblem problem_of(const Variant& variant) {
  MoeProblem problem;
  problem.config.experts = 8;
  problem.config.top_k = 2;
  problem.config.hidden = 5;
  problem.config.aux_loss = 0.3;
  problem.config.z_loss = 0.2;
  variant.edit(problem);
  return problem;
}

// Tokens go to two experts alone: the others get none, their ranks nothing.
void crowd(MoeProblem& problem) {
  problem.config.bias_rate = 0.01;
  problem.skew = 10;
}

const Variant kVariants[] = {
    {"softmax", [](MoeProblem&) {}},
    {"renormalised_shared",
     [](MoeProblem& p) {
       p.config.renormalise = true;
       p.config.shared_hidden = 3;
       p.config.activation = Activation::relu2;
     }},
    {"sigmoid_groups_bias",
     [](MoeProblem& p) {
       p.config.score = RouterScore::sigmoid;
       p.config.renormalise = true;
       p.config.scale = 2.5;
       p.config.groups = 4;
       p.config.topk_group = 2;
       p.config.bias_rate = 0.01;
     }},
    {"capacity", [](MoeProblem& p) { p.config.capacity_factor = 0.75; }},
    {"capacity_without_losses",
     [](MoeProblem& p) {
       p.config.capacity_factor = 0.75;
       p.config.aux_loss = p.config.z_loss = 0;
     }},
    {"without_balance_loss", [](MoeProblem& p) { p.config.aux_loss = 0; }},
    {"experts_without_tokens", crowd},
    {"many_rounds",
     [](MoeProblem& p) {
       crowd(p);
       p.config.receive_factor = 1;
       p.config.shared_hidden = 3;
     }},
    {"rounds_and_capacity",
     [](MoeProblem& p) {
       crowd(p);
       p.config.receive_factor = 1.25;
       p.config.capacity_factor = 2;
     }},
    {"one_token_shards", [](MoeProblem& p) { p.T = 3; }},
    {"uneven_rows", [](MoeProblem& p) { p.B = 6; }},
    {"top_1", [](MoeProblem& p) { p.config.top_k = 1; }},
};

const MeshShape kLayouts[] = {{.dp = 2, .ep = 2},
                              {.dp = 4, .ep = 4},
                              {.dp = 4, .ep = 2},
                              {.cp = 2},
                              {.cp = 3},
                              {.dp = 2, .ep = 2, .cp = 2},
                              {.dp = 2, .cp = 2},
                              {.dp = 2, .ep = 2, .cp = 3},
                              {.dp = 4, .ep = 4, .cp = 2}};

void expect_near(const Tensor& a, const Tensor& b, double tolerance, const std::string& what) {
  EXPECT_LE(relative_error(a, b), tolerance) << what;
}

void expect_same(const MoeOutcome& outcome, const MoeOutcome& reference, double tolerance) {
  expect_near(outcome.y, reference.y, tolerance, "y");
  expect_near(outcome.dx, reference.dx, tolerance, "dx");
  ASSERT_EQ(outcome.gradients.size(), reference.gradients.size());
  for (const auto& [name, gradient] : reference.gradients) {
    expect_near(outcome.gradients.at(name), gradient, tolerance, name);
  }
  const StepStatistics &a = outcome.statistics, &b = reference.statistics;
  EXPECT_NEAR(a.balance_loss, b.balance_loss, tolerance * (b.balance_loss + 1e-6));
  EXPECT_NEAR(a.z_loss, b.z_loss, tolerance * (b.z_loss + 1e-6));
  EXPECT_EQ(a.expert_counts, b.expert_counts);
}

class ExpertParallel : public testing::TestWithParam<Variant> {};

TEST_P(ExpertParallel, OneRankIsTheLoopOverTokens) {
  const MoeProblem problem = problem_of(GetParam());
  const PlainMoe plain(problem);
  const MoeOutcome outcome = run_moe(problem, {});
  expect_near(outcome.y, plain.y, 1e-12, "y");
  EXPECT_NEAR(outcome.statistics.balance_loss, plain.balance, 1e-12);
  EXPECT_NEAR(outcome.statistics.z_loss, plain.z, 1e-12);
  EXPECT_EQ(outcome.statistics.expert_counts.at(0), plain.counts);
  EXPECT_EQ(plain.dropped > 0, problem.config.capacity_factor > 0);
}

TEST_P(ExpertParallel, AnyLayoutIsOneRankInDouble) {
  MoeProblem problem = problem_of(GetParam());
  RoutingTape one;
  problem.routing = &one;
  const MoeOutcome reference = run_moe(problem, {});
  for (const MeshShape& layout : kLayouts) {
    SCOPED_TRACE(to_string(layout));
    RoutingTape many;
    problem.routing = &many;
    expect_same(run_moe(problem, layout), reference, 1e-10);
    const RoutingTape::Comparison choices = RoutingTape::compare(one, many);
    EXPECT_EQ(choices.choices, problem.B * problem.T * problem.config.top_k);
    EXPECT_EQ(choices.flipped, 0) << choices.first;
  }
}

TEST_P(ExpertParallel, AnyLayoutIsOneRankInFloatWithItsChoices) {
  MoeProblem problem = problem_of(GetParam());
  problem.dtype = DType::f32;
  RoutingTape choices;
  problem.routing = &choices;
  const MoeOutcome reference = run_moe(problem, {});
  choices.dictate();
  for (const MeshShape& layout : kLayouts) {
    SCOPED_TRACE(to_string(layout));
    expect_same(run_moe(problem, layout), reference, 2e-5);
  }
}

// A replay reads what it received: the same bits, and no counts travel again.
TEST_P(ExpertParallel, RecomputationGathersNothingAgain) {
  MoeProblem problem = problem_of(GetParam());
  for (const MeshShape& layout : {MeshShape{.dp = 2, .ep = 2, .cp = 2}, MeshShape{.cp = 3}}) {
    SCOPED_TRACE(to_string(layout));
    problem.recompute = false;
    const MoeOutcome kept = run_moe(problem, layout);
    problem.recompute = true;
    const MoeOutcome replayed = run_moe(problem, layout);
    EXPECT_EQ(replayed.gathers, kept.gathers);
    const bool rows_gather = problem.config.aux_loss > 0 || problem.config.capacity_factor > 0;
    EXPECT_EQ(kept.gathers, int64_t(layout.ep > 1) + int64_t(rows_gather));
    EXPECT_TRUE(bit_equal(replayed.y, kept.y));
    EXPECT_TRUE(bit_equal(replayed.dx, kept.dx));
    for (const auto& [name, gradient] : kept.gradients) {
      EXPECT_TRUE(bit_equal(replayed.gradients.at(name), gradient)) << name;
    }
    EXPECT_EQ(replayed.statistics.balance_loss, kept.statistics.balance_loss);
    EXPECT_EQ(replayed.statistics.expert_counts, kept.statistics.expert_counts);
  }
}

// Memory is that of the counting run, whatever the load: dropless loads have the mean it assumes.
// What travels stays within the bound of what it expects; with a capacity it is what it expects.
TEST_P(ExpertParallel, NeedsWhatCountingPlans) {
  const MoeProblem problem = problem_of(GetParam());
  const MeshShape layout{.dp = 4, .ep = 4, .cp = 2};
  const MoeOutcome outcome = run_moe(problem, layout);
  const Mesh mesh(layout, 0);
  Communicator& ep = mesh.axis(Axis::ep);
  MoeOnRank rank(problem, {.sequence = &mesh.axis(Axis::cp), .experts = &ep});
  const TestRows batch(problem.B, problem.T);
  const ShardRows shard(batch, mesh);
  const Dims dims{shard.rows().rows, shard.rows().tokens, problem.D};
  Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
  const Context ctx{.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  const TensorView null(nullptr, dims, problem.dtype);
  const auto tape = rank.layer->forward(ctx, shard, {.x = null, .y = null});
  rank.layer->backward(ctx, shard, {.dy = null, .dx = null}, *tape);
  const Traffic even = ep.traffic(Verb::all_to_all_v);
  EXPECT_EQ(even.calls, 4);  // two ways, forward and backward
  EXPECT_GT(even.contributed, 0);
  const bool all_have_as_much = problem.B % layout.dp == 0;
  if (all_have_as_much) {
    EXPECT_EQ(outcome.saved, saved.peak());
    EXPECT_EQ(outcome.scratch, scratch.peak());
  } else {
    EXPECT_LE(outcome.saved, saved.peak());
    EXPECT_LE(outcome.scratch, scratch.peak());
  }
  if (problem.config.capacity_factor > 0) {
    EXPECT_EQ(outcome.exchanged, even);
    return;
  }
  const Traffic worst = DistributedExperts::worst_traffic(even, layout.ep);
  const int64_t entries = dims[0] * dims[1] * problem.config.top_k;
  EXPECT_EQ(even.contributed % (4 * problem.D * int64_t(size_of(problem.dtype))), 0);
  EXPECT_LE(even.contributed, 4 * entries * problem.D * int64_t(size_of(problem.dtype)));
  EXPECT_LE(outcome.exchanged.calls, worst.calls);
  EXPECT_LE(outcome.exchanged.contributed, worst.contributed);
  EXPECT_LE(outcome.exchanged.received, worst.received);
}

INSTANTIATE_TEST_SUITE_P(Variants, ExpertParallel, testing::ValuesIn(kVariants),
                         [](const auto& info) { return info.param.name; });

// Two ways to move the same rows.
TEST(ExpertParallelRounds, OnlyRoundTheResults) {
  MoeProblem problem = problem_of({"", crowd});
  const MeshShape layout{.dp = 4, .ep = 4};
  problem.config.receive_factor = 4;
  const MoeOutcome one_round = run_moe(problem, layout);
  problem.config.receive_factor = 1;
  expect_same(run_moe(problem, layout), one_round, 1e-13);
}

TEST(ExpertParallelChoices, AreThoseOfTheTapeWithWeightsFromTheLogits) {
  MoeProblem problem = problem_of(kVariants[2]);
  std::vector<int32_t> dictated(problem.B * problem.T * problem.config.top_k);
  for (size_t i = 0; i < dictated.size(); ++i) dictated[i] = int32_t((i * 3 + i / 2) % 8);
  RoutingTape tape;
  const TestRows rows(problem.B, problem.T);
  tape.write(0, rows, TensorView(dictated.data(), {problem.B, problem.T, problem.config.top_k}));
  tape.dictate();
  problem.routing = &tape;
  const PlainMoe plain(problem, &dictated);
  for (const MeshShape& layout : {MeshShape{}, MeshShape{.dp = 2, .ep = 2, .cp = 2}}) {
    const MoeOutcome outcome = run_moe(problem, layout);
    expect_near(outcome.y, plain.y, 1e-12, "y");
    EXPECT_EQ(outcome.statistics.expert_counts.at(0), plain.counts);
  }
}

// The exchange hides behind the shared expert: held back until the shared work is done, the rows
// still arrive. A layer that waited for them first would wait in vain.
class ExpertParallelOverlap : public testing::TestWithParam<bool> {};  // in slots

TEST_P(ExpertParallelOverlap, TokensTravelWhileOtherWorkIsDone) {
  run_ranks(2, [](Communicator& group) {
    std::atomic<bool> worked = false;
    // Verb 0 is that of the counts.
    HeldVerbs held(group, [&](int verb) { return verb == 0 || worked; });
    Communicator& slow = held;
    const int64_t D = 4, entries = 12;
    ParameterStore store(DType::f64);
    const Experts experts(
        {.store = store, .prefix = "moe.", .d_model = D, .groups = {.experts = &slow}},
        {.experts = 4, .hidden = 3});
    store.freeze();
    store.initialise(1);
    const Tensor gradients = zeros({store.flat_size()}, DType::f64);
    store.bind_gradients(gradients);
    TestContext ctx;
    const DistributedExperts distributed(experts, slow, 4, 2);
    Tensor counts({4}, DType::i32), all({2, 4}, DType::i32);
    Tensor offsets({5}, DType::i64);
    counts.fill({3, 3, 3, 3});
    offsets.fill({0, 3, 6, 9, 12});
    distributed.begin_counts(counts, all).wait();
    DistributedExperts::Tape tape;
    if (GetParam()) {
      distributed.route_slots(ctx, 4, offsets, counts, all, tape);
    } else {
      distributed.route(ctx, all, entries, tape);
    }
    const Tensor rows = normal({entries, D}, DType::f64, 1);
    const Tensor gradient = normal({entries, D}, DType::f64, 2);
    const Tensor out({entries, D}, DType::f64);
    distributed.forward(ctx, rows, out, tape, [&] { worked = true; });
    worked = false;
    distributed.backward(
        ctx, gradient, tape, [](const TensorView&) {}, [&] { worked = true; });
    EXPECT_EQ(held.late(), 0);
  });
}

INSTANTIATE_TEST_SUITE_P(InSlots, ExpertParallelOverlap, testing::Bool());

// How the other ranks' tokens of a row chose is not waited for before the experts have worked: it
// is held back until their tokens have gone there and back.
TEST(ExpertParallelCounts, TravelWhileExpertsWork) {
  const MoeProblem problem = problem_of(kVariants[0]);
  const TestRows batch(problem.B, problem.T);
  run_layout({.dp = 2, .ep = 2, .cp = 2}, [&](const Mesh& mesh) {
    std::atomic<int> exchanged = 0;
    DelayedCommunicator experts(
        mesh.axis(Axis::ep), [](Verb) {},
        [&](Verb verb) { exchanged += verb == Verb::all_to_all_v; });
    HeldVerbs held(mesh.axis(Axis::cp), [&](int) { return exchanged == 2; });
    Communicator& sequence = held;
    MoeOnRank rank(problem, {.sequence = &sequence, .experts = &experts});
    const ShardRows shard(batch, mesh);
    const Tensor x = shard.cut(problem.x());
    Tensor y(x.dims(), problem.dtype);
    TestContext ctx;
    rank.layer->forward(ctx, shard, {.x = x, .y = y});
    EXPECT_EQ(held.done(), 1);
    EXPECT_EQ(held.late(), 0);
  });
}

TEST(ExpertParallelStep, IsCollectiveAndEqualsOneRank) {
  const MoeProblem problem = problem_of(kVariants[1]);
  const Tensor x = normal({4, problem.D}, DType::f64, 3);
  const auto step = [&](const MeshShape& shape) {
    Tensor y({4, problem.D}, DType::f64);
    run_layout(shape, [&](const Mesh& mesh) {
      MoeOnRank rank(problem, {.sequence = nullptr, .experts = &mesh.axis(Axis::ep)});
      TestContext ctx;
      const Slice rows = slice_of(4, shape.dp, mesh.at().dp);
      rank.layer->step(ctx, {.x = x.view().row_range(rows.begin, rows.size()),
                             .y = y.view().row_range(rows.begin, rows.size())});
    });
    return y;
  };
  expect_near(step({.dp = 2, .ep = 2}), step({}), 1e-12, "y");
}

TEST(ExpertParallelBuild, RefusesExpertsThatDoNotDivide) {
  MoeProblem problem = problem_of({"", [](MoeProblem&) {}});
  problem.config.experts = 6;
  const auto planned = make_planned_communicator(4, 0);
  expect_error<UsageError>(
      [&] { MoeOnRank(problem, {.sequence = nullptr, .experts = planned.get()}); },
      {"6 experts", "ep 4", "divisor of 6"});
}

}  // namespace
}  // namespace sluice::test
