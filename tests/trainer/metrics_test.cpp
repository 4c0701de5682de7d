#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "tests/support/temp_folder.h"

namespace sluice::test {
namespace {

StepMetrics at_step(int64_t step) {
  return {.step = step,
          .loss = 2.5,
          .grad_norm = 0.1,
          .lr = 6e-4,
          .tokens = 131072 * step,
          .tokens_per_s = 1000,
          .step_s = 0.5,
          .data_wait_s = 0};
}

TEST(Metrics, LineHasTheAgreedKeys) {
  EXPECT_EQ(to_json_line(at_step(3)),
            R"({"step": 3, "loss": 2.5, "grad_norm": 0.1, "lr": 6e-04, "tokens": 393216, )"
            R"("tokens_per_s": 1000, "step_s": 0.5, "data_wait_s": 0})");
  StepMetrics full = at_step(1);
  full.mfu = 0.41;
  full.aux_loss = 0.01;
  full.expert_load_max_over_mean = 1.5;
  full.memory_gib = 2;
  full.skipped = true;
  full.more = {{"valid_loss", 3.25}};
  const nlohmann::json json = nlohmann::json::parse(to_json_line(full));
  EXPECT_EQ(json["mfu"], 0.41);
  EXPECT_EQ(json["valid_loss"], 3.25);
  EXPECT_EQ(json["skipped"], true);
  EXPECT_EQ(json.size(), 14u);
}

TEST(Metrics, LineStaysJsonWhenNumbersAreNotFinite) {
  StepMetrics metrics = at_step(1);
  metrics.loss = std::nan("");
  metrics.grad_norm = std::numeric_limits<double>::infinity();
  const nlohmann::json json = nlohmann::json::parse(to_json_line(metrics));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
}

TEST(Metrics, NumbersReadBackExactly) {
  StepMetrics metrics = at_step(1);
  metrics.loss = 2.345678901234567;
  metrics.lr = 1.0 / 3e4;
  metrics.tokens = (int64_t{1} << 52) + 1;
  const nlohmann::json json = nlohmann::json::parse(to_json_line(metrics));
  EXPECT_EQ(json["loss"].get<double>(), metrics.loss);
  EXPECT_EQ(json["lr"].get<double>(), metrics.lr);
  EXPECT_EQ(json["tokens"].get<int64_t>(), metrics.tokens);
}

TEST(Metrics, EveryStepIsInTheFileAtOnce) {
  TempFolder folder;
  MetricsWriter writer(folder / "metrics.jsonl", {});
  writer.write(at_step(1));
  EXPECT_EQ(folder.read("metrics.jsonl"), to_json_line(at_step(1)) + "\n");
  writer.write(at_step(2));
  EXPECT_EQ(folder.read("metrics.jsonl"),
            to_json_line(at_step(1)) + "\n" + to_json_line(at_step(2)) + "\n");
  EXPECT_TRUE(writer.sync());
}

TEST(Metrics, TensorboardTags) {
  StepMetrics metrics = at_step(1);
  metrics.mfu = 0.5;
  metrics.more = {{"valid_loss", 3.25}};
  const std::vector<std::pair<std::string, double>> expected = {
      {"loss_metrics/global_avg_loss", 2.5},
      {"grad_norm", 0.1},
      {"lr", 6e-4},
      {"tokens", 131072},
      {"throughput(tps)", 1000},
      {"step_s", 0.5},
      {"data_wait_s", 0},
      {"mfu(%)", 50},
      {"validation_metrics/loss", 3.25}};
  EXPECT_EQ(tensorboard_values(metrics), expected);
}

TEST(Metrics, TruncatesToACheckpoint) {
  TempFolder folder;
  std::string lines;
  for (int64_t step = 1; step <= 5; ++step) lines += to_json_line(at_step(step)) + "\n";
  const std::string torn = R"({"step": 2, "lo)";
  const std::string path = folder.write("metrics.jsonl", lines + torn);
  truncate_metrics(path, 3);
  std::string expected;
  for (int64_t step = 1; step <= 3; ++step) expected += to_json_line(at_step(step)) + "\n";
  EXPECT_EQ(folder.read("metrics.jsonl"), expected);
  truncate_metrics(path, 3);
  EXPECT_EQ(folder.read("metrics.jsonl"), expected);
  truncate_metrics(path, 0);
  EXPECT_EQ(folder.read("metrics.jsonl"), "");
  truncate_metrics(folder / "none.jsonl", 3);
  EXPECT_FALSE(std::filesystem::exists(folder / "none.jsonl"));
  folder.write("bad.jsonl", "[]\n");
  EXPECT_THROW(truncate_metrics(folder / "bad.jsonl", 3), DataError);
}

TEST(AppendFile, SurvivesAFullDeviceWithOneWarning) {
  std::vector<std::string> warnings;
  AppendFile file("/dev/full", [&](const std::string& text) { warnings.push_back(text); });
  for (int i = 0; i < 10; ++i) file.append("line\n");
  EXPECT_FALSE(file.sync());
  EXPECT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0].substr(0, 23), "cannot write /dev/full:");
  EXPECT_EQ(file.pending_bytes(), 50);
}

// A file that may not grow, then may: a disk that was full for a while.
TEST(AppendFile, IsWholeAgainAfterwards) {
  TempFolder folder;
  std::vector<std::string> warnings;
  AppendFile file(folder / "log", [&](const std::string& text) { warnings.push_back(text); });
  file.append("first line\n");
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 15;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  file.append("second line\n");  // cut after four bytes
  file.append("third line\n");
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(warnings.size(), 1u);
  EXPECT_EQ(folder.read("log"), "first line\nseco");
  file.append("fourth line\n");
  EXPECT_EQ(folder.read("log"), "first line\nsecond line\nthird line\nfourth line\n");
  EXPECT_TRUE(file.sync());
}

TEST(AppendFile, RefusesWhatCannotBeOpened) {
  EXPECT_THROW(AppendFile("/nowhere/log", {}), IoError);
}

}  // namespace
}  // namespace sluice::test
