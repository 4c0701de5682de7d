// A small Jamba-like stack (scan, SSD, attention, feed-forwards, experts) trained on the CPU and on
// a GPU, with the same experts' choices: top-k is discontinuous, so the GPU is dictated the CPU's,
// step by step, and its own are compared with them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/host_copy.h"
#include "layers/routing_tape.h"
#include "parallel/self_communicator.h"
#include "tests/support/synthetic_rows.h"

namespace sluice::test {
namespace {

constexpr int kSteps = 20, kDifferentSteps = 4;

struct Variant {
  std::string name;
  std::string moe;
  Recompute recompute = Recompute::none;
};
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

Config config_of(const Variant& variant) {
  Config config = parse_config(variant.name, fmt::format(R"(
name: moe
seed: 5
model:
  d_model: 64
  vocab_size: 257
  stack: {{pattern: "S-SEM-*ESE"}}
  mamba: {{state_dim: 8, inner_norm: learned}}
  mamba2: {{head_dim: 16, state_dim: 16, chunk: 16}}
  attention: {{heads: 4, kv_heads: 2}}
  mlp: {{hidden: 80, activation: swiglu}}
  moe: {{experts: 8, hidden: 48, {}}}
data: {{train: none, valid: none}}
train: {{steps: 20, seq_len: 50, global_batch: 6, micro_batch: 3, threads: 2}}
optimizer: {{lr: 0.003}}
)",
                                                         variant.moe));
  config.train.recompute = variant.recompute;
  return config;
}

struct Trained {
  std::vector<StepReport> steps;
  std::vector<char> values;  // all parameters afterwards
  bool graph = false;
};

// tapes: one a step, or none.
Trained train(const Config& config, Device device, DType dtype, std::vector<RoutingTape>* tapes) {
  const OwnedStream stream(device);
  const Place place{.device = device, .stream = stream};
  const auto self = make_self_communicator(place);
  const Mesh mesh(*self, {});
  StepEngine engine(config, mesh, dtype, place);
  Trained trained{.steps = {}, .values = {}, .graph = engine.uses_graph()};
  for (int step = 0; step < kSteps; ++step) {
    RoutingTape* const routing = tapes == nullptr ? nullptr : &(*tapes)[step];
    trained.steps.push_back(
        synthetic_step(engine, config, step % kDifferentSteps, config.optimizer.lr, routing));
  }
  const HostCopy values(engine.store().values(), stream);
  const char* const bytes = static_cast<const char*>(values.view().data);
  trained.values.assign(bytes, bytes + values.view().numel() * size_of(values.view().dtype));
  return trained;
}

void expect_near(const Trained& got, const Trained& expected, double tolerance) {
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE(concat("step ", step + 1));
    const StepReport &a = got.steps[step], &b = expected.steps[step];
    const auto near = [&](const char* what, double x, double y) {
      EXPECT_LE(std::fabs(x - y), tolerance * std::fabs(y))
          << what << ' ' << x << ", expected " << y;
    };
    near("loss", a.loss, b.loss);
    near("gradient norm", a.grad_norm, b.grad_norm);
    near("balance loss", a.statistics.balance_loss, b.statistics.balance_loss);
    near("z-loss", a.statistics.z_loss, b.statistics.z_loss);
    EXPECT_EQ(a.statistics.expert_counts, b.statistics.expert_counts);
    EXPECT_TRUE(a.finite);
  }
}

void expect_equal(const Trained& got, const Trained& expected) {
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE(concat("step ", step + 1));
    const StepReport &a = got.steps[step], &b = expected.steps[step];
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.grad_norm, b.grad_norm);
    EXPECT_EQ(a.statistics.balance_loss, b.statistics.balance_loss);
    EXPECT_EQ(a.statistics.z_loss, b.statistics.z_loss);
    EXPECT_EQ(a.statistics.expert_counts, b.statistics.expert_counts);
  }
  EXPECT_TRUE(got.values == expected.values) << "parameters have other bits";
}

class MoeTrainingGpu : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  }
  const Device gpu_{Device::Kind::cuda, 0};
};

TEST_P(MoeTrainingGpu, HasTheLossesOfTheCpuWithItsChoices) {
  const Config config = config_of(GetParam());
  std::vector<RoutingTape> choices(kSteps), own(kSteps);
  const Trained expected = train(config, kCpu, DType::f32, &choices);
  EXPECT_LT(expected.steps.back().loss, 0.9 * expected.steps.front().loss) << "nothing was learnt";
  const Trained free = train(config, gpu_, DType::f32, &own);
  // The same values, so the same choices but for near ties.
  const RoutingTape::Comparison first = RoutingTape::compare(choices[0], own[0]);
  EXPECT_LE(double(first.flipped), 1e-3 * double(first.choices)) << first.first;
  EXPECT_NEAR(free.steps[0].loss, expected.steps[0].loss, 1e-3);
  for (RoutingTape& tape : choices) tape.dictate();
  expect_near(train(config, gpu_, DType::f32, &choices), expected, 1e-4);
}

TEST_P(MoeTrainingGpu, OneGraphARerunAndSeparateLaunchesHaveTheSameBits) {
  Config config = config_of(GetParam());
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    config.train.graph = true;
    const Trained graph = train(config, gpu_, dtype, nullptr);
    EXPECT_TRUE(graph.graph);
    expect_equal(train(config, gpu_, dtype, nullptr), graph);
    config.train.graph = false;
    const Trained launched = train(config, gpu_, dtype, nullptr);
    EXPECT_FALSE(launched.graph);
    expect_equal(launched, graph);
    // A tape that records changes nothing.
    std::vector<RoutingTape> tapes(kSteps);
    expect_equal(train(config, gpu_, dtype, &tapes), graph);
  }
}

TEST_P(MoeTrainingGpu, LearnsInBf16AsInF32) {
  const Config config = config_of(GetParam());
  const auto last_loss = [&](DType dtype) {
    const Trained trained = train(config, gpu_, dtype, nullptr);
    double sum = 0;
    for (int step = kSteps - kDifferentSteps; step < kSteps; ++step)
      sum += trained.steps[step].loss;
    return sum / kDifferentSteps;
  };
  const double f32 = last_loss(DType::f32);
  EXPECT_NEAR(last_loss(DType::bf16), f32, 0.03 * f32);
}

// Stacks without a shared expert and with one, every score, every way to balance.
const Variant kVariants[] = {
    {"shared_and_losses", "top_k: 2, shared_hidden: 40, aux_loss: 0.02, z_loss: 0.002"},
    {"sigmoid_bias",
     "top_k: 3, score: sigmoid, renormalise: true, scale: 2.5, groups: 4, topk_group: 2, "
     "aux_loss: 0, z_loss: 0, bias_rate: 0.01",
     Recompute::selective},
    {"capacity", "top_k: 2, activation: relu2, capacity_factor: 1.0, shared_hidden: 24",
     Recompute::full}};

INSTANTIATE_TEST_SUITE_P(Variants, MoeTrainingGpu, testing::ValuesIn(kVariants),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice::test
