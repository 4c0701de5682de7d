// A step whose gradients fill more than one bucket: how buckets overlap with the backward, and that
// they change no bit. (Other tests' models fit in one.)
#include "trainer/step_engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/parallel/delayed_communicator.h"
#include "tests/support/layouts.h"
#include "tests/support/synthetic_rows.h"

namespace sluice::test {
namespace {

// 28 MiB of gradients, all but a few of them the second branch's: the last bucket, which is reduced
// first, lies within that branch.
Config two_bucket_config() {
  return parse_config("two buckets", R"(
seed: 3
model:
  d_model: 32
  vocab_size: 41
  stack: {pattern: "M-"}
  mamba2: {head_dim: 8, state_dim: 4, chunk: 4}
  mlp: {hidden: 75000}
train: {seq_len: 8, global_batch: 4, micro_batch: 1, threads: 1}
)");
}

// Parameters without padding, which depends on the number of ranks.
std::vector<float> parameters_of(const ParameterStore& store) {
  std::vector<float> all;
  for (int32_t i = 0; i < int32_t(store.parameters().size()); ++i) {
    const TensorView value = store.value({i});
    all.insert(all.end(), value.as<float>(), value.as<float>() + value.numel());
  }
  return all;
}

TEST(StepEngineBuckets, ChangeNoBit) {
  Config config = two_bucket_config();
  const auto train_on = [&](const MeshShape& shape) {
    std::vector<float> parameters;
    run_layout(shape, [&](const Mesh& mesh) {
      StepEngine engine(config, mesh);
      EXPECT_EQ(cut_buckets(engine.arena().groups()[0].buckets, shape.world()).size(), 2u);
      for (int64_t step = 0; step < 2; ++step) synthetic_step(engine, config, step);
      if (mesh.world().rank() == 0) parameters = parameters_of(engine.store());
    });
    return parameters;
  };
  const std::vector<float> one = train_on({});
  for (const int64_t zero : {0, 1, 2}) {
    config.parallel.zero = zero;
    EXPECT_TRUE(train_on({.dp = 2}) == one) << "zero " << zero;
  }
}

// The first branch of the stack is the last of the backward. The exchange at its end, of the halo's
// gradient, is held back until a bucket is being reduced: a step that reduced only after the
// backward would never come so far, but for the limit.
TEST(StepEngineBuckets, AreReducedWhileTheBackwardGoesOn) {
  Config config = two_bucket_config();
  config.train.global_batch = 1;
  for (const int64_t zero : {0, 1, 2}) {
    config.parallel.zero = zero;
    run_ranks(2, [&](Communicator& world) {
      std::atomic<int> halos = 0, reductions = 0, late = 0;
      const auto before = [&](Verb verb) {
        if (verb == Verb::reduce_scatter || verb == Verb::all_reduce) ++reductions;
        if (verb != Verb::all_to_all_v || ++halos < 2) return;  // the forward's
        const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
        while (reductions == 0 && late == 0) {
          if (std::chrono::steady_clock::now() > limit) ++late;
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      };
      DelayedCommunicator delayed(world, before, [](Verb) {});
      const Mesh mesh(delayed, {.cp = 2});
      StepEngine engine(config, mesh);
      synthetic_step(engine, config, 0);
      EXPECT_EQ(halos.load(), 2);
      EXPECT_GE(reductions.load(), 2);
      EXPECT_EQ(late.load(), 0) << "zero " << zero;
    });
  }
}

// On a planned mesh, which needs no GPU.
TEST(StepEngineLaunches, AreOneGraphOrSayWhyNot) {
  Config config = two_bucket_config();
  const auto launches = [&](const MeshShape& shape, Device device) {
    return StepEngine(config, Mesh(shape, 0), DType::f32, {.device = device}).describe_launches();
  };
  constexpr Device kGpu{Device::Kind::cuda, 0};
  const std::string one_graph = "a step is one CUDA graph";
  EXPECT_EQ(launches({}, kCpu), "");
  EXPECT_EQ(launches({}, kGpu), one_graph);

  config.model.stack.pattern = "ME";
  MoeConfig& moe = std::get<MoeConfig>(config.model.sections);
  moe.experts = 4, moe.hidden = 8;
  EXPECT_EQ(launches({.dp = 2}, kGpu), one_graph);
  EXPECT_NE(launches({.dp = 2, .ep = 2}, kGpu).find("moe.capacity_factor"), std::string::npos);
  moe.capacity_factor = 1;
  EXPECT_EQ(launches({.dp = 2, .ep = 2}, kGpu), one_graph);

  config.data.carry_state = true;
  EXPECT_NE(launches({}, kGpu).find("data.carry_state"), std::string::npos);
  config.data.carry_state = false;
  config.train.graph = false;
  EXPECT_EQ(launches({}, kGpu), "a step is launched anew each time: train.graph is false");
}

}  // namespace
}  // namespace sluice::test
