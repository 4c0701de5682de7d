// data.carry_state: rows that go on from step to step are one long row, and a resume changes no
// bit.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "parallel/self_communicator.h"
#include "tests/support/errors.h"
#include "tests/support/layouts.h"
#include "tests/support/synthetic_rows.h"
#include "tests/support/tiny_run.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/engine_state.h"
#include "trainer/training_run.h"

namespace sluice::test {
namespace {

// Documents of 3 to 43 tokens in rows of 8, so that most go on over several steps.
struct CarryingRun : TinyRun {
  explicit CarryingRun(const std::string& pattern = "M-S") : TinyRun(pattern) {
    config.data.carry_state = true;
    config.train.seq_len = 8;
  }
};

Sampler sampler_of(const Config& config) {
  std::vector<SamplerSource> sources;
  sources.push_back({std::make_unique<TokenStore>(config.data.train[0].path), 1});
  return Sampler(std::move(sources), {.seq_len = config.train.seq_len,
                                      .global_batch = config.train.global_batch,
                                      .seed = uint64_t(config.seed),
                                      .carry_state = config.data.carry_state});
}

// Sums of token losses of `steps` steps with fixed parameters. The same rows whether or not the
// engine carries states from one to the next.
std::vector<double> losses_of(const Config& config, const MeshShape& shape, int64_t steps,
                              bool carries = true) {
  Config engine_config = config;
  engine_config.data.carry_state = carries;
  std::vector<double> losses;
  run_layout(shape, [&](const Mesh& mesh) {
    StepEngine engine(engine_config, mesh, DType::f64);
    Sampler sampler = sampler_of(config);
    for (int64_t step = 0; step < steps; ++step) {
      int64_t i = 0;
      const int64_t targets = sampler.count_targets(step);
      const StepReport report =
          engine.step({.lr = 0, .targets = targets, .next_batch = [&] {
                         return sampler.batch(step, engine.first_row(i++),
                                              engine.micro_batch_rows(), engine.sequence_shard());
                       }});
      if (mesh.world().rank() == 0) losses.push_back(report.loss * double(targets));
    }
  });
  return losses;
}

TEST(CarryState, StepsOfARowAreOneLongRow) {
  for (const char* stack : {"M-", "S-", "MS-"}) {
    CarryingRun run(stack);
    run.config.optimizer.weight_decay = 0;
    const int64_t steps = 5;
    Config whole = run.config;
    whole.train.seq_len *= steps;
    const double expected = losses_of(whole, {}, 1)[0];
    for (const MeshShape& shape :
         {MeshShape{}, MeshShape{.dp = 2}, MeshShape{.cp = 2}, MeshShape{.dp = 2, .cp = 3}}) {
      for (const Recompute recompute : {Recompute::none, Recompute::full}) {
        run.config.train.recompute = recompute;
        double sum = 0;
        for (const double loss : losses_of(run.config, shape, steps)) sum += loss;
        EXPECT_NEAR(sum, expected, 1e-9 * expected) << stack << " on " << to_string(shape);
      }
    }
    // And the state matters: from a zero one every row but the first would be predicted otherwise.
    const std::vector<double> carried = losses_of(run.config, {}, steps);
    const std::vector<double> afresh = losses_of(run.config, {}, steps, false);
    EXPECT_EQ(afresh[0], carried[0]);
    for (int64_t step = 1; step < steps; ++step)
      EXPECT_GT(std::fabs(afresh[step] - carried[step]), 1e-6 * carried[step]) << step;
  }
}

// What a checkpoint takes to another layout is what that layout would have had.
TEST(CarryState, StatesGoToTheRanksThatReadTheirRows) {
  CarryingRun run;
  run.config.parallel.zero = 2;
  std::map<std::string, std::vector<float>> whole;
  const auto states_on = [&](const MeshShape& shape) {
    std::map<std::string, std::vector<float>> states;
    std::mutex mutex;
    run_layout(shape, [&](const Mesh& mesh) {
      StepEngine engine(run.config, mesh);
      Sampler sampler = sampler_of(run.config);
      for (int64_t step = 0; step < 2; ++step) {
        int64_t i = 0;
        engine.step({.lr = 0, .targets = sampler.count_targets(step), .next_batch = [&] {
                       return sampler.batch(step, engine.first_row(i++), engine.micro_batch_rows(),
                                            engine.sequence_shard());
                     }});
      }
      const std::lock_guard lock(mutex);
      const HostState host(engine);
      for (const LocalPiece& piece : pieces_to_save(engine, host)) {
        if (!piece.name.starts_with("carried/")) continue;
        std::vector<float>& values = states[piece.name];
        values.resize(piece.dims.numel());
        std::copy_n(static_cast<const float*>(piece.data), piece.region.count(),
                    values.begin() + piece.region.begin);
      }
    });
    return states;
  };
  const auto one = states_on({});
  EXPECT_EQ(one.size(), 4u);  // convolution tail and state of two mixers
  for (const auto& [name, values] : one) {
    EXPECT_TRUE(std::any_of(values.begin(), values.end(), [](float x) { return x != 0; })) << name;
  }
  EXPECT_EQ(states_on({.dp = 2}), one);
  EXPECT_EQ(states_on({.dp = 4}), one);
}

std::map<int64_t, double> train_in(const Config& config, const std::string& folder,
                                   const std::string& resume = "auto") {
  World world;
  world.comm = make_self_communicator();
  Mesh mesh(*world.comm, {});
  TrainingRun run(config, {.folder = folder, .resume = resume, .arguments = {}}, world, mesh);
  EXPECT_EQ(run.run(), ExitCode::ok);
  std::map<int64_t, double> losses;
  std::ifstream file(folder + "/metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    losses[json["step"]] = json["loss"];
  }
  return losses;
}

TEST(CarryState, ResumesBitForBit) {
  CarryingRun run;
  run.config.checkpoint.every = 5;
  const std::string whole = run.folder.path() + "/whole";
  const auto expected = train_in(run.config, whole);
  run.config.checkpoint.every = 0;
  const auto resumed =
      train_in(run.config, run.folder.path() + "/again", whole + "/checkpoints/" + step_name(5));
  EXPECT_EQ(resumed.size(), 7u);
  for (const auto& [step, loss] : resumed) EXPECT_EQ(loss, expected.at(step)) << "step " << step;
}

TEST(CarryState, WhatDealsTheRowsIsLocked) {
  CarryingRun run;
  const std::string folder = run.folder.path() + "/run";
  train_in(run.config, folder);
  run.config.train.steps = 20;
  Config changed = run.config;
  changed.train.seq_len = 16;
  expect_error<Error>([&] { train_in(changed, folder); }, {"train.seq_len: 8 in the checkpoint"});
  changed = run.config;
  changed.data.carry_state = false;
  expect_error<Error>([&] { train_in(changed, folder); }, {"data.carry_state"});
}

TEST(CarryState, AttentionIsRefused) {
  const CarryingRun run("M*");
  const Mesh mesh({}, 0);
  EXPECT_THROW(StepEngine(run.config, mesh), UsageError);
}

}  // namespace
}  // namespace sluice::test
