#include "trainer/training_run.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "parallel/self_communicator.h"
#include "tests/support/tiny_run.h"
#include "trainer/checkpoint/folders.h"

namespace sluice::test {
namespace {

ExitCode run_in(const TinyRun& tiny, const std::string& folder,
                const std::string& resume = "auto") {
  World world;
  world.comm = make_self_communicator();
  Mesh mesh(*world.comm, {});
  TrainingRun run(tiny.config, {.folder = folder, .resume = resume, .arguments = {}}, world, mesh);
  return run.run();
}

// step -> loss, as written.
std::map<int64_t, double> losses_of(const std::string& folder) {
  std::map<int64_t, double> losses;
  std::ifstream file(folder + "/metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    EXPECT_EQ(losses.count(json["step"]), 0u) << "step " << json["step"] << " twice";
    losses[json["step"]] = json["loss"];
  }
  return losses;
}

ExitCode code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

TEST(TrainingRun, ResumesBitForBitFromThreeSteps) {
  TinyRun tiny;
  tiny.config.train.steps = 80;
  tiny.config.checkpoint.every = 1;
  const std::string whole = tiny.folder.path() + "/whole";
  ASSERT_EQ(run_in(tiny, whole), ExitCode::ok);
  const auto expected = losses_of(whole);
  ASSERT_EQ(expected.size(), 80u);
  tiny.config.checkpoint.every = 0;
  for (const int64_t step : {7, 16, 29}) {
    const std::string again = tiny.folder.path() + "/again" + std::to_string(step);
    ASSERT_EQ(run_in(tiny, again, whole + "/checkpoints/" + step_name(step)), ExitCode::ok);
    const auto resumed = losses_of(again);
    EXPECT_EQ(resumed.begin()->first, step + 1);
    EXPECT_EQ(resumed.size(), size_t(80 - step));
    for (const auto& [at, loss] : resumed) EXPECT_EQ(loss, expected.at(at)) << "step " << at;
  }
}

TEST(TrainingRun, ASignalStopsWithACheckpointAndTheRunGoesOn) {
  TinyRun tiny;
  const std::string folder = tiny.folder.path() + "/run";
  {
    World world;
    world.comm = make_self_communicator();
    Mesh mesh(*world.comm, {});
    TrainingRun run(tiny.config, {.folder = folder, .arguments = {}}, world, mesh);
    std::raise(SIGUSR1);
    EXPECT_EQ(run.run(), ExitCode::requeue);
  }
  EXPECT_EQ(losses_of(folder).size(), 1u);
  EXPECT_EQ(run_in(tiny, folder), ExitCode::ok);
  EXPECT_EQ(losses_of(folder).size(), 12u);
  // A run without the interruption gives the same numbers.
  const std::string whole = tiny.folder.path() + "/whole";
  ASSERT_EQ(run_in(tiny, whole), ExitCode::ok);
  EXPECT_EQ(losses_of(folder), losses_of(whole));
}

TEST(TrainingRun, AFinishedRunIsLeftAlone) {
  TinyRun tiny;
  const std::string folder = tiny.folder.path() + "/run";
  ASSERT_EQ(run_in(tiny, folder), ExitCode::ok);
  const auto before = std::filesystem::last_write_time(folder + "/metrics.jsonl");
  EXPECT_EQ(run_in(tiny, folder), ExitCode::ok);
  EXPECT_EQ(std::filesystem::last_write_time(folder + "/metrics.jsonl"), before);
}

TEST(TrainingRun, AnotherModelsCheckpointIsRefusedAndTheKeysAreNamed) {
  TinyRun tiny;
  const std::string folder = tiny.folder.path() + "/run";
  ASSERT_EQ(run_in(tiny, folder), ExitCode::ok);
  tiny.config.model.norm_eps = 1e-3;
  try {
    run_in(tiny, folder);
    FAIL() << "went on with another model";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("model.norm_eps"), std::string::npos) << error.what();
  }
}

TEST(TrainingRun, WeightsOfAnotherConfigurationStartANewRun) {
  TinyRun tiny;
  const std::string first = tiny.folder.path() + "/first";
  ASSERT_EQ(run_in(tiny, first), ExitCode::ok);
  tiny.config.seed = 8;
  const std::string second = tiny.folder.path() + "/second";
  ASSERT_EQ(run_in(tiny, second, first), ExitCode::ok);
  const auto losses = losses_of(second);
  EXPECT_EQ(losses.begin()->first, 1);
  EXPECT_LT(losses.at(1), 0.8 * losses_of(first).at(1));  // trained weights, step 1
}

TEST(TrainingRun, InitFromTakesTheWeightsOfAnotherRun) {
  TinyRun tiny;
  const std::string first = tiny.folder.path() + "/first";
  ASSERT_EQ(run_in(tiny, first), ExitCode::ok);
  tiny.config.model.init_from = first;
  const std::string second = tiny.folder.path() + "/second";
  ASSERT_EQ(run_in(tiny, second), ExitCode::ok);
  EXPECT_LT(losses_of(second).at(1), 0.8 * losses_of(first).at(1));
  tiny.config.model.stack.pattern = "M";
  EXPECT_EQ(code_of([&] { run_in(tiny, tiny.folder.path() + "/third"); }), ExitCode::ok);
  tiny.config.model.stack.pattern = "MM";
  EXPECT_EQ(code_of([&] { run_in(tiny, tiny.folder.path() + "/fourth"); }), ExitCode::usage);
}

TEST(TrainingRun, AChangedTokenStoreIsRefused) {
  TinyRun tiny;
  const std::string folder = tiny.folder.path() + "/run";
  ASSERT_EQ(run_in(tiny, folder), ExitCode::ok);
  write_tiny_store(tiny.folder.path() + "/train.h5", 3, 400);
  tiny.config.train.steps = 20;
  EXPECT_EQ(code_of([&] { run_in(tiny, folder); }), ExitCode::data);
}

TEST(TrainingRun, ResumeNeverRefusesAUsedFolder) {
  TinyRun tiny;
  const std::string folder = tiny.folder.path() + "/run";
  ASSERT_EQ(run_in(tiny, folder), ExitCode::ok);
  EXPECT_EQ(code_of([&] { run_in(tiny, folder, "never"); }), ExitCode::usage);
}

TEST(TrainingRun, ADamagedCheckpointFallsBackToTheOneBefore) {
  TinyRun tiny;
  tiny.config.checkpoint.every = 4;
  const std::string folder = tiny.folder.path() + "/run";
  ASSERT_EQ(run_in(tiny, folder), ExitCode::ok);
  const auto expected = losses_of(folder);
  std::filesystem::resize_file(folder + "/checkpoints/" + step_name(12) + "/model-0.h5", 100);
  ASSERT_EQ(run_in(tiny, folder), ExitCode::ok);
  EXPECT_EQ(losses_of(folder), expected);
}

TEST(TrainingRun, HopelessRunsEndWithTheirOwnCode) {
  TinyRun tiny;
  tiny.config.optimizer.lr = 1e30;
  tiny.config.optimizer.clip = 0;
  tiny.config.schedule.warmup = 0;
  tiny.config.train.nan_policy = NanPolicy::stop;
  EXPECT_EQ(code_of([&] { run_in(tiny, tiny.folder.path() + "/run"); }), ExitCode::not_finite);
}

}  // namespace
}  // namespace sluice::test
