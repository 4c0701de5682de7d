// Every layout equals one rank: losses, the gradient of every parameter and the parameters after
// three steps, in double, for stacks of every kind.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cmath>

#include "tests/support/gradient_error.h"
#include "tests/support/layouts.h"
#include "tests/support/synthetic_rows.h"

namespace sluice::test {
namespace {

constexpr int64_t kSteps = 3;
constexpr double kTolerance = 1e-10;

struct Case {
  std::string name = {};
  std::string stack = {};
  MeshShape mesh = {};
  int64_t zero = 1;
  int64_t micro_batch = 1;
  Recompute recompute = Recompute::none;
  int64_t seq_len = 13;   // does not divide
  std::string more = {};  // overrides of the model section
};
void PrintTo(const Case& test_case, std::ostream* out) { *out << test_case.name; }

Config config_of(const Case& test_case) {
  Config config = parse_config("layouts", fmt::format(R"(
seed: 3
model:
  d_model: 16
  vocab_size: 41
  stack: {{pattern: "{}"}}
  mamba2: {{head_dim: 8, state_dim: 4, groups: 1, chunk: 4}}
  mamba: {{state_dim: 4}}
  attention: {{heads: 4, kv_heads: 2, rope: {{theta: 10000}}}}
  mlp: {{hidden: 24}}
  moe: {{experts: 4, top_k: 2, hidden: 12, aux_loss: 0.01, z_loss: 0.001{}}}
train: {{global_batch: 8, threads: 1}}
)",
                                                      test_case.stack, test_case.more));
  config.train.seq_len = test_case.seq_len;
  config.train.micro_batch = test_case.micro_batch;
  config.train.recompute = test_case.recompute;
  config.parallel.zero = test_case.zero;
  return config;
}

struct Outcome {
  std::vector<StepReport> reports;
  // Of whole parameters, by name: gradients of the first step, values after the last.
  NamedTensors gradients;
  NamedTensors values;
};

// Pastes the parts of all ranks, each written by one of those that hold it.
void paste(const StepEngine& engine, const TensorView& flat, const NamedTensors& whole) {
  const MeshCoordinates at = engine.mesh().at();
  for (int32_t i = 0; i < int32_t(engine.store().parameters().size()); ++i) {
    const Parameter& parameter = engine.store().parameters()[i];
    const bool cut = parameter.flags.shards > 1;
    if (at.cp != 0 || at.edp != 0 || (!cut && at.ep != 0)) continue;
    const double* const part = engine.store().view(flat, {i}).as<double>();
    std::copy_n(part, parameter.dims.numel(),
                whole.at(parameter.name).view().as<double>() + parameter.first_element());
  }
}

Outcome train(const Config& config, const MeshShape& shape) {
  Outcome outcome;
  std::vector<std::vector<StepReport>> reports(shape.world());
  {
    const Mesh mesh(MeshShape{}, 0);
    const StepEngine whole(config, mesh, DType::f64);
    for (const Parameter& parameter : whole.store().parameters()) {
      outcome.gradients.emplace(parameter.name, Tensor(parameter.dims, DType::f64));
      outcome.values.emplace(parameter.name, Tensor(parameter.dims, DType::f64));
    }
  }
  run_layout(shape, [&](const Mesh& mesh) {
    StepEngine engine(config, mesh, DType::f64);
    for (int64_t step = 0; step < kSteps; ++step) {
      reports[mesh.world().rank()].push_back(synthetic_step(engine, config, step));
      if (step > 0) continue;
      Tensor flat({engine.store().flat_size()}, DType::f64);
      engine.gather_gradients(flat);
      paste(engine, flat, outcome.gradients);
    }
    paste(engine, engine.store().values(), outcome.values);
  });
  for (const std::vector<StepReport>& of_rank : reports) {
    for (int64_t step = 0; step < kSteps; ++step) {
      EXPECT_EQ(of_rank[step].loss, reports[0][step].loss);
      EXPECT_EQ(of_rank[step].grad_norm, reports[0][step].grad_norm);
      EXPECT_EQ(of_rank[step].statistics.expert_counts, reports[0][step].statistics.expert_counts);
    }
  }
  outcome.reports = reports[0];
  return outcome;
}

void expect_close(double got, double expected, const std::string& what) {
  EXPECT_LE(std::fabs(got - expected), kTolerance * std::max(1.0, std::fabs(expected))) << what;
}

class Layouts : public testing::TestWithParam<Case> {};

TEST_P(Layouts, EqualsOneRank) {
  const Case& test_case = GetParam();
  const Config config = config_of(test_case);
  const Outcome many = train(config, test_case.mesh);
  Config plain = config;
  plain.train.recompute = Recompute::none;
  plain.train.micro_batch = config.train.global_batch;  // all rows in one pass
  const Outcome one = train(plain, {});
  for (int64_t step = 0; step < kSteps; ++step) {
    const StepReport& got = many.reports[step];
    const StepReport& expected = one.reports[step];
    expect_close(got.loss, expected.loss, "loss");
    expect_close(got.grad_norm, expected.grad_norm, "gradient norm");
    expect_close(got.statistics.balance_loss, expected.statistics.balance_loss, "balance loss");
    expect_close(got.statistics.z_loss, expected.statistics.z_loss, "z-loss");
    EXPECT_EQ(got.statistics.expert_counts, expected.statistics.expert_counts);
  }
  expect_equal(many.gradients, one.gradients, kTolerance, "gradient of");
  expect_equal(many.values, one.values, kTolerance, "values of");
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](Case test_case) {
    test_case.name = fmt::format("{}_dp{}_ep{}_cp{}_{}", all.size(), test_case.mesh.dp,
                                 test_case.mesh.ep, test_case.mesh.cp, test_case.zero);
    all.push_back(std::move(test_case));
  };
  // Rows alone.
  for (const char* stack : {"M-", "S-", "*-", "ME*-"}) {
    for (const int64_t zero : {0, 1, 2}) add({.stack = stack, .mesh = {.dp = 4}, .zero = zero});
  }
  // Tokens too: heads by all-to-all, and keys and values where heads do not divide.
  add({.stack = "*-", .mesh = {.cp = 2}});
  add({.stack = "*-*", .mesh = {.dp = 2, .cp = 2}, .zero = 2});
  add({.stack = "*-", .mesh = {.cp = 3}, .recompute = Recompute::full});
  // Experts: of other ranks, and of rows that are cut.
  add({.stack = "E-", .mesh = {.dp = 2, .ep = 2}});
  add({.stack = "*E", .mesh = {.dp = 4, .ep = 2}, .zero = 2});
  add({.stack = "E*", .mesh = {.dp = 4, .ep = 4}, .zero = 0});
  add({.stack = "E*", .mesh = {.cp = 3}});
  add({.stack = "*E*E", .mesh = {.dp = 2, .ep = 2, .cp = 2}, .recompute = Recompute::full});
  add({.stack = "*E",
       .mesh = {.dp = 4, .ep = 2, .cp = 2},
       .zero = 2,
       .more = ", capacity_factor: 1.0"});
  // Recurrent states and convolution halos, down to shards of one token.
  add({.stack = "M-", .mesh = {.cp = 2}});
  add({.stack = "S-", .mesh = {.cp = 4}, .zero = 2});
  add({.stack = "MS", .mesh = {.cp = 5}, .seq_len = 6});
  add({.stack = "M-S", .mesh = {.dp = 2, .cp = 3}, .recompute = Recompute::full});
  add({.stack = "SM", .mesh = {.dp = 2, .cp = 2}, .zero = 0, .micro_batch = 2});
  // All of it.
  add({.stack = "M*-E", .mesh = {.dp = 2, .cp = 2}, .zero = 2, .recompute = Recompute::selective});
  add({.stack = "ME*-SE", .mesh = {.dp = 2, .ep = 2, .cp = 2}, .recompute = Recompute::full});
  add({.stack = "ME*-SE", .mesh = {.dp = 4, .ep = 2, .cp = 2}, .zero = 2});
  add({.stack = "SEME", .mesh = {.dp = 2, .ep = 2, .cp = 4}, .micro_batch = 2});
  // Choice biases, which move by the loads of the whole world.
  const std::string biases = ", score: sigmoid, bias_rate: 0.01";
  add({.stack = "ME-SE", .mesh = {.dp = 4, .ep = 2}, .zero = 2, .more = biases});
  add({.stack = "SE*", .mesh = {.dp = 2, .ep = 2, .cp = 2}, .more = biases});
  return all;
}

TEST(LayoutTwice, GivesTheSameBits) {
  const Case twice[] = {
      {.stack = "ME*-SE", .mesh = {.dp = 4, .ep = 2, .cp = 2}, .zero = 2},
      {.stack = "M*S", .mesh = {.dp = 2, .cp = 3}, .recompute = Recompute::full},
  };
  for (const Case& test_case : twice) {
    const Config config = config_of(test_case);
    const Outcome first = train(config, test_case.mesh), second = train(config, test_case.mesh);
    for (int64_t step = 0; step < kSteps; ++step) {
      EXPECT_EQ(second.reports[step].loss, first.reports[step].loss);
      EXPECT_EQ(second.reports[step].grad_norm, first.reports[step].grad_norm);
    }
    for (const auto& [name, gradient] : first.gradients)
      EXPECT_TRUE(bit_equal(second.gradients.at(name), gradient)) << "gradient of " << name;
    for (const auto& [name, value] : first.values)
      EXPECT_TRUE(bit_equal(second.values.at(name), value)) << "values of " << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Trainer, Layouts, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice::test
