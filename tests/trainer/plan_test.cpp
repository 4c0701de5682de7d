#include "trainer/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>

#include "kernels/grad_norm/grad_norm.h"
#include "parallel/thread_communicator.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_run.h"
#include "trainer/step_engine.h"
#include "trainer/verify/synthetic_rows.h"

namespace sluice::test {
namespace {

using VerbTraffic = std::array<Traffic, kNumVerbs>;
using MeshTraffic = std::map<std::string, VerbTraffic>;  // by axes

MeshTraffic traffic_of(const Mesh& mesh) {
  MeshTraffic traffic;
  for (const Mesh::Group& group : mesh.groups()) {
    for (int verb = 0; verb < kNumVerbs; ++verb)
      traffic[group.axes][verb] = group.group->traffic(Verb(verb));
  }
  return traffic;
}

Traffic less(const Traffic& a, const Traffic& b) {
  return {a.calls - b.calls, a.contributed - b.contributed, a.sent - b.sent,
          a.received - b.received};
}

// What a step of `config` moves on every rank of the mesh, by the counters.
std::vector<MeshTraffic> traffic_of_a_step(const Config& config, const MeshShape& shape) {
  std::vector<MeshTraffic> ranks(shape.world());
  const SyntheticRows rows{
      .seed = 1, .row_tokens = config.train.seq_len, .vocab_size = config.model.vocab_size};
  run_ranks(shape.world(), [&](Communicator& world) {
    const Mesh mesh(world, shape);
    StepEngine engine(config, mesh);
    const MeshTraffic before = traffic_of(mesh);
    int64_t next = 0;
    engine.step({.lr = 1e-3,
                 .targets = rows.count_targets(0, config.train.global_batch),
                 .next_batch = [&] {
                   return rows.batch(0, engine.first_row(next++), engine.micro_batch_rows(),
                                     engine.sequence_shard());
                 }});
    MeshTraffic& own = ranks[world.rank()];
    own = traffic_of(mesh);
    for (auto& [axes, verbs] : own) {
      for (int verb = 0; verb < kNumVerbs; ++verb)
        verbs[verb] = less(verbs[verb], before.at(axes)[verb]);
    }
  });
  return ranks;
}

int64_t bytes_sent(const VerbTraffic& verbs) {
  int64_t sent = 0;
  for (const Traffic& traffic : verbs) sent += traffic.sent;
  return sent;
}

// With experts, all but their tokens: of these there is a bound instead.
void expect_planned_exactly(const Config& config, const MeshShape& shape, bool experts) {
  const std::vector<MeshTraffic> moved = traffic_of_a_step(config, shape);
  for (int rank = 0; rank < shape.world(); ++rank) {
    const Mesh mesh(shape, rank);
    StepEngine engine(config, mesh);
    engine.count_step();
    const MeshTraffic planned = traffic_of(mesh);
    ASSERT_EQ(planned.size(), moved[rank].size());
    for (const auto& [axes, verbs] : planned) {
      for (int verb = 0; verb < kNumVerbs; ++verb) {
        if (experts && axes == "ep" && Verb(verb) == Verb::all_to_all_v) continue;
        EXPECT_EQ(verbs[verb], moved[rank].at(axes)[verb])
            << name_of(Verb(verb)) << " over " << axes << " on rank " << rank << " of "
            << to_string(shape);
      }
    }
  }
  // What is printed.
  const std::map<std::string, int64_t> printed =
      make_plan(config, shape.world()).wire_bytes_per_step;
  EXPECT_EQ(printed.size(), moved[0].size());
  for (const auto& [axes, bytes] : printed) {
    if (experts && axes == "ep") continue;
    int64_t most = 0;
    for (const MeshTraffic& rank : moved) most = std::max(most, bytes_sent(rank.at(axes)));
    EXPECT_EQ(bytes, most) << "over " << axes << " of " << to_string(shape);
  }
}

Config with_parallel(Config config, const MeshShape& shape, int zero) {
  config.parallel.dp = shape.dp;
  config.parallel.ep = shape.ep;
  config.parallel.cp = shape.cp;
  config.parallel.zero = zero;
  return config;
}

TEST(Plan, WireBytesAreThoseThatAStepMoves) {
  for (const char* pattern : {"M*-", "S*"}) {
    const TinyRun tiny(pattern);
    for (const MeshShape& shape : {MeshShape{2, 1, 1}, {1, 1, 2}, {2, 1, 2}, {1, 1, 3}}) {
      for (const int zero : {0, 1, 2})
        expect_planned_exactly(with_parallel(tiny.config, shape, zero), shape, false);
    }
  }
}

// On a machine without a GPU too.
TEST(Plan, PlansForGpusInBf16) {
  const TinyRun tiny("ME*-S");
  for (const MeshShape& shape : {MeshShape{1, 1, 1}, {2, 2, 1}, {2, 1, 2}}) {
    Config config = with_parallel(tiny.config, shape, 1);
    const Plan on_cpu = make_plan(config, shape.world());
    config.device = DeviceChoice::cuda;
    config.precision = Precision::bf16;
    config.train.global_batch = 8 * config.train.micro_batch;
    const Plan plan = make_plan(config, shape.world());
    EXPECT_TRUE(plan.fits());
    EXPECT_EQ(plan.total_params, on_cpu.total_params);
    // What is read as f32 lies apart: each such section is padded.
    const double padding = 2.0 * kNormBlock * shape.world() * sizeof(float);
    EXPECT_NEAR(plan.values, 1.5 * on_cpu.values, 1.5 * padding) << "masters, rounded copies";
    EXPECT_NEAR(plan.gradients, on_cpu.values, padding) << "micro-batches add into one buffer";
    EXPECT_NEAR(plan.optimizer, on_cpu.optimizer, 2 * padding);
    EXPECT_GT(plan.saved, 0);
  }
}

TEST(Plan, SaysWhatIsNeededWhatIsFreeAndWhatToChange) {
  TinyRun tiny("M-*-");
  tiny.config.device = DeviceChoice::cuda;
  const Plan fits = make_plan(tiny.config, 1);
  require_fit(fits, {Device::Kind::cuda, 0}, fits.memory());
  const int64_t free = fits.memory() - 1;
  const Plan plan = make_plan(tiny.config, 1, free);
  EXPECT_EQ(plan.remedy, "train.micro_batch=1");
  expect_error<UsageError>(
      [&] {
        require_fit(plan, {Device::Kind::cuda, 1}, 2 * free);
      },
      {"of GPU 1", "are free", "try train.micro_batch=1"});
  EXPECT_NE(make_plan(tiny.config, 1, 1).remedy.find("more memory or more ranks"),
            std::string::npos);
}

// However the stack is written.
TEST(Plan, CountsTheResidualStreamInItsOwnDtype) {
  TinyRun tiny;
  ModelConfig& model = tiny.config.model;
  std::vector<StackConfig> notations(4);
  notations[0].pattern = "M-*-";
  notations[1].layers = 2, notations[1].ffn = "mlp";
  notations[1].attention = {.period = 2, .offset = 1};
  notations[2].layers = 2, notations[2].ffn = "mlp", notations[2].attention.ratio = 0.5;
  model.stack = notations[0];
  notations[3].branches = resolve_stack(model);
  tiny.config.device = DeviceChoice::cuda;
  tiny.config.precision = Precision::bf16;
  for (const StackConfig& stack : notations) {
    model.stack = stack;
    model.residual = ResidualDType::f32;
    const Plan precise = make_plan(tiny.config, 1);
    model.residual = ResidualDType::model;
    const Plan rounded = make_plan(tiny.config, 1);
    const int64_t stream = tiny.config.train.micro_batch * tiny.config.train.seq_len *
                           model.d_model * int64_t(sizeof(bf16));
    EXPECT_EQ(precise.saved - rounded.saved, 5 * stream) << "4 branches' inputs and the norm's";
    EXPECT_GT(precise.scratch, rounded.scratch);
    EXPECT_EQ(precise.values, rounded.values);
  }
}

TEST(Plan, WireBytesOfExpertsAreExpectedAndBounded) {
  const TinyRun tiny("ME");
  for (const MeshShape& shape : {MeshShape{2, 2, 1}, {4, 2, 1}, {2, 2, 2}}) {
    for (const int zero : {0, 1}) {
      const Config config = with_parallel(tiny.config, shape, zero);
      expect_planned_exactly(config, shape, true);
      const Plan plan = make_plan(config, shape.world());
      const std::vector<MeshTraffic> moved = traffic_of_a_step(config, shape);
      int64_t sum = 0;
      for (const MeshTraffic& rank : moved) {
        const int64_t sent = bytes_sent(rank.at("ep"));
        EXPECT_LE(sent, plan.wire_bytes_bound.at("ep")) << to_string(shape);
        sum += sent;
      }
      // The load of a few tokens is uneven; the mean over ranks is near.
      const double mean = double(sum) / shape.world();
      EXPECT_NEAR(mean / double(plan.wire_bytes_per_step.at("ep")), 1, 0.5) << to_string(shape);
    }
  }
}

// An expert has its places on the wire whatever the load.
TEST(Plan, WireBytesOfExpertsWithACapacityAreExact) {
  TinyRun tiny("ME");
  std::get<MoeConfig>(tiny.config.model.sections).capacity_factor = 1;
  for (const MeshShape& shape : {MeshShape{2, 2, 1}, {4, 2, 1}, {2, 2, 2}}) {
    const Config config = with_parallel(tiny.config, shape, 1);
    expect_planned_exactly(config, shape, false);
    EXPECT_TRUE(make_plan(config, shape.world()).wire_bytes_bound.empty());
  }
}

TEST(Plan, NamesTheMeshAndWhatBranchesExchange) {
  const TinyRun tiny("M*E");
  const Plan plan = make_plan(with_parallel(tiny.config, {2, 2, 2}, 1), 4);
  const std::string text = describe(plan);
  EXPECT_NE(text.find("dp 2 x ep 2 x cp 2"), std::string::npos) << text;
  EXPECT_NE(text.find("attention"), std::string::npos) << text;
  EXPECT_FALSE(plan.exchanges.empty());
  EXPECT_EQ(to_json(plan).at("mesh").at("cp"), 2);
  EXPECT_TRUE(to_json(plan).at("wire_bytes_per_step").contains("cp"));
  EXPECT_THROW(make_plan(with_parallel(tiny.config, {2, 2, 2}, 1), 3), UsageError);
}

// Fast kernels that are missing, or a library that was asked for, are named once for all branches.
TEST(Plan, NamesWhatAGpuRunsWith) {
  TinyRun tiny("M*M*");
  EXPECT_TRUE(make_plan(tiny.config, 1).kernels.empty());
  tiny.config.device = DeviceChoice::cuda;
  tiny.config.precision = Precision::bf16;
  AttentionConfig& attention = std::get<AttentionConfig>(tiny.config.model.sections);
  attention.heads = 1;
  attention.head_dim = 12;
  std::get<Mamba2Config>(tiny.config.model.sections).chunk = 512;
  const Plan plan = make_plan(tiny.config, 1);
  ASSERT_EQ(plan.kernels.size(), 2u);
  EXPECT_NE(plan.kernels[0].find("chunk 512 runs on plain kernels, about "), std::string::npos)
      << plan.kernels[0];
  EXPECT_NE(plan.kernels[1].find("head_dim 12 runs on plain kernels, about "), std::string::npos)
      << plan.kernels[1];
  EXPECT_NE(describe(plan).find(plan.kernels[1]), std::string::npos);
  EXPECT_EQ(to_json(plan).at("kernels").size(), 2u);
}

TEST(Plan, NamesConvolutionsAndScansThatMissTheFastKernels) {
  TinyRun tiny("SM");
  tiny.config.device = DeviceChoice::cuda;
  std::get<MambaConfig>(tiny.config.model.sections).state_dim = 16;
  EXPECT_TRUE(make_plan(tiny.config, 1).kernels.empty());
  std::get<MambaConfig>(tiny.config.model.sections).state_dim = 40;
  std::get<MambaConfig>(tiny.config.model.sections).conv_width = 3;
  std::get<Mamba2Config>(tiny.config.model.sections).conv_width = 5;
  const Plan plan = make_plan(tiny.config, 1);
  ASSERT_EQ(plan.kernels.size(), 2u);
  for (const char* text : {"branch 0 (mamba): ", " over 3 tokens runs on plain kernels",
                           "; state_dim 40", "in 3 passes"}) {
    EXPECT_NE(plan.kernels[0].find(text), std::string::npos) << plan.kernels[0];
  }
  EXPECT_NE(plan.kernels[1].find(" over 5 tokens runs on plain kernels"), std::string::npos)
      << plan.kernels[1];
}

// train.reproducible: layout on GPUs: the tree's buffers, and what sums over ranks are taken in.
TEST(Plan, CountsWhatEqualBitsForEveryDpCost) {
  const TinyRun tiny("M*E");  // gradients are one bucket for each section
  const auto plans = [&](int dp, int zero) {
    Config config = with_parallel(tiny.config, {dp, 1, 1}, zero);
    config.device = DeviceChoice::cuda;
    const Plan run = make_plan(config, dp);
    config.train.reproducible = Reproducible::layout;
    return std::pair(run, make_plan(config, dp));
  };
  const auto sent = [](const Plan& plan) { return plan.wire_bytes_per_step.at("dp"); };
  {
    const auto [run, layout] = plans(1, 1);  // 4 micro-batches
    EXPECT_EQ(layout.gradients, 3 * run.gradients);
    EXPECT_NE(layout.reproducible.find("layout takes 0.0"), std::string::npos)
        << layout.reproducible;
    EXPECT_EQ(run.reproducible, "");
    EXPECT_NE(describe(layout).find(layout.reproducible), std::string::npos);
    EXPECT_EQ(to_json(layout).at("reproducible"), layout.reproducible);
  }
  for (const int zero : {0, 1}) {
    const auto [run, layout] = plans(2, zero);  // 2 a rank
    EXPECT_EQ(layout.gradients, 2 * run.gradients + run.gradients);
    EXPECT_EQ(sent(layout), sent(run));
    EXPECT_NE(layout.reproducible.find("1.00 times the bytes over dp"), std::string::npos)
        << layout.reproducible;
    EXPECT_EQ(layout.reproducible.find("are not"), std::string::npos) << layout.reproducible;
  }
  const auto [run, layout] = plans(2, 2);
  // Two shards, a whole buffer, and as much to sum in; every micro-batch is reduced.
  EXPECT_EQ(layout.gradients, 3 * run.gradients);
  EXPECT_EQ(sent(layout) - sent(run), run.gradients / 2);
  EXPECT_NE(plans(4, 2).second.reproducible.find("times the bytes"), std::string::npos);
}

TEST(Plan, SaysWhereEqualBitsCannotBe) {
  TinyRun tiny("M*E");
  tiny.config.device = DeviceChoice::cuda;
  tiny.config.train.reproducible = Reproducible::layout;
  tiny.config.train.global_batch = 24;  // 12 micro-batches
  const auto expect_said = [&](const MeshShape& shape, int zero, const char* what) {
    const std::string text =
        make_plan(with_parallel(tiny.config, shape, zero), shape.world()).reproducible;
    const size_t why = text.find("bits are not those of another dp: ");
    EXPECT_EQ(why == std::string::npos, *what == '\0') << text;
    EXPECT_NE(text.find(what), std::string::npos) << text;
  };
  expect_said({4, 1, 1}, 1, "");
  expect_said({3, 1, 1}, 1, "dp 3 is no power of two");
  expect_said({3, 1, 1}, 2, "");
  expect_said({4, 1, 1}, 2, "3 micro-batches");
  expect_said({2, 2, 1}, 1, "experts are spread");
  expect_said({2, 1, 2}, 1, "rows are spread");
}

// On the CPU it is always so.
TEST(Plan, EqualBitsCostNothingMoreOnTheCpu) {
  const TinyRun tiny("M*");
  Config config = with_parallel(tiny.config, {2, 1, 1}, 2);
  const nlohmann::json run = to_json(make_plan(config, 2));
  config.train.reproducible = Reproducible::layout;
  EXPECT_EQ(to_json(make_plan(config, 2)), run);
}

TEST(Plan, ProposesTheOrderOfARunWhereTheTreeDoesNotFit) {
  TinyRun tiny("M-");
  tiny.config.device = DeviceChoice::cuda;
  const Plan run = make_plan(tiny.config, 1);
  tiny.config.train.reproducible = Reproducible::layout;
  EXPECT_EQ(make_plan(tiny.config, 1, run.memory()).remedy, "train.reproducible=run");
}

// Rows that do not move by 16 bytes cost time in every branch; the branches are told apart.
TEST(Plan, NamesWhatOddWidthsCost) {
  TinyRun tiny("ME*-MM");
  tiny.config.device = DeviceChoice::cuda;
  tiny.config.precision = Precision::bf16;
  ModelConfig& model = tiny.config.model;
  std::get<Mamba2Config>(model.sections) = {.head_dim = 64, .state_dim = 128};
  std::get<MlpConfig>(model.sections).hidden = 24;
  std::get<MoeConfig>(model.sections).hidden = 16;
  model.d_model = 64;
  std::get<Mamba2Config>(model.sections).expand = 8;       // heads in a multiple of 8
  EXPECT_TRUE(make_plan(tiny.config, 1).kernels.empty());  // though the vocabulary is odd
  std::get<MlpConfig>(model.sections).hidden = 23;
  std::get<MoeConfig>(model.sections).hidden = 17;
  std::vector<std::string> lines = make_plan(tiny.config, 1).kernels;
  ASSERT_EQ(lines.size(), 2u);
  for (const char* text : {"branch 1 (moe): ", "experts of 64 to 17 run", "times as long"})
    EXPECT_NE(lines[0].find(text), std::string::npos) << lines[0];
  for (const char* text : {"branch 3 (mlp): ", "rows of 23 elements", "times as long"})
    EXPECT_NE(lines[1].find(text), std::string::npos) << lines[1];
  model.d_model = 62;
  std::get<Mamba2Config>(model.sections).expand = 32;  // an inner width of 31 heads
  std::get<AttentionConfig>(model.sections).head_dim = 32;
  lines = make_plan(tiny.config, 1).kernels;
  ASSERT_EQ(lines.size(), 5u);
  const char* const beginnings[] = {
      "embedding, norms and head: ", "branches 0, 4-5 (mamba2): ", "branch 1 (moe): ",
      "branch 2 (attention): ", "branch 3 (mlp): "};
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].find(beginnings[i]), 0u) << lines[i];
    EXPECT_NE(lines[i].find("times as long"), std::string::npos) << lines[i];
  }
}

TEST(Plan, OneRankSendsNothing) {
  const TinyRun tiny("M*E");
  EXPECT_TRUE(make_plan(with_parallel(tiny.config, {1, 1, 1}, 1), 1).wire_bytes_per_step.empty());
}

}  // namespace
}  // namespace sluice::test
