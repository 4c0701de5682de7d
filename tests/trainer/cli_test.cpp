// The built binary, as a shell sees it: output, messages, exit codes.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tests/support/temp_folder.h"

namespace sluice::test {
namespace {

struct Outcome {
  int code = -1;
  std::string out;  // stdout
  std::string err;  // stderr
};

class Cli : public testing::Test {
 protected:
  // Runs `sluice ARGUMENTS` in the temporary folder.
  Outcome run(const std::string& arguments, const std::string& environment = "") {
    const std::string command = "cd " + temp_.path() + " && " + environment + " " +
                                SLUICE_BINARY_DIR "/bin/sluice " + arguments + " 2>stderr.txt";
    std::FILE* pipe = ::popen(command.c_str(), "r");
    Outcome outcome;
    std::array<char, 4096> buffer{};
    size_t bytes = 0;
    while ((bytes = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0) {
      outcome.out.append(buffer.data(), bytes);
    }
    const int status = ::pclose(pipe);
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.err = temp_.read("stderr.txt");
    return outcome;
  }
  // A usage error: code 2, at most five lines on stderr, nothing on stdout.
  void expect_usage_error(const std::string& arguments, const std::string& text) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_EQ(outcome.err.substr(0, 15), "sluice: error: ") << outcome.err;
    EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
    EXPECT_LE(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 5) << outcome.err;
  }

  TempFolder temp_;
};

TEST_F(Cli, Version) {
  const Outcome outcome = run("--version");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find("\nCUDA "), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("\nMPI "), std::string::npos) << outcome.out;
  EXPECT_EQ(outcome.err, "");
}

TEST_F(Cli, UsageErrorsExitWith2) {
  expect_usage_error("", "expected a command, got nothing");
  expect_usage_error("confg", "expected a command, got 'confg'");
  expect_usage_error("config pritn x.yaml", "did you mean 'print'?");
  expect_usage_error("config print", "CONFIG is required");
  temp_.write("a.yaml", "train: {steps: 10}\n");
  expect_usage_error("config print a.yaml --jsn", "did you mean '--json'?");
  expect_usage_error("config print a.yaml train.stpes=5",
                     "unknown key 'stpes' in train; did you mean 'steps'?");
  expect_usage_error("config print a.yaml train.steps=0",
                     "train.steps: expected an integer of at least 1, got '0'");
  expect_usage_error("config print a.yaml steps", "expected dotted.key=value");
  for (const char* command : {"score m --tokens t", "eval m --data d", "generate m --prompt p"})
    expect_usage_error(std::string(command) + " --device gpu", "--device is auto, cpu or cuda");
  temp_.write("b.yaml", "train: {steps: 10}\ntrain: {steps: 11}\n");
  expect_usage_error("config print b.yaml", "b.yaml:2:1: duplicate key 'train', first on line 1");
}

TEST_F(Cli, HelpOfEveryCommand) {
  const Outcome overview = run("--help");
  EXPECT_EQ(overview.code, 0);
  for (const char* command : {"config print", "config schema", "data build", "data inspect"}) {
    EXPECT_NE(overview.out.find(command), std::string::npos);
    const Outcome outcome = run(std::string(command) + " --help");
    EXPECT_EQ(outcome.code, 0) << command;
    EXPECT_NE(outcome.out.find("sluice " + std::string(command)), std::string::npos);
  }
}

TEST_F(Cli, MissingFileIs74) {
  const Outcome outcome = run("config print gone.yaml");
  EXPECT_EQ(outcome.code, 74);
  EXPECT_EQ(outcome.err, "sluice: error: cannot open gone.yaml: No such file or directory\n");
}

TEST_F(Cli, ErrorsCarryTheRank) {
  EXPECT_EQ(run("nothing", "OMPI_COMM_WORLD_RANK=1").err.substr(0, 24), "[rank 1] sluice: error: ");
}

TEST_F(Cli, FullOutputIs74) {
  temp_.write("a.yaml", "model: {d_model: 32, stack: {pattern: M-}}\n");
  EXPECT_EQ(run("config print a.yaml > /dev/full").code, 74);
}

TEST_F(Cli, ConfigPrintReadsBack) {
  temp_.write("a.yaml", "name: x\nmodel: {d_model: 32, stack: {pattern: M-}}\n");
  const Outcome first = run("config print a.yaml train.steps=2k");
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_NE(first.out.find("  steps: 2000 "), std::string::npos) << first.out;
  EXPECT_NE(first.out.find("# override\n"), std::string::npos);
  EXPECT_NE(first.out.find("# a.yaml:2\n"), std::string::npos);
  EXPECT_NE(first.out.find("# default\n"), std::string::npos);
  temp_.write("b.yaml", first.out);
  const Outcome a = run("config print a.yaml train.steps=2000 --json");
  const Outcome b = run("config print b.yaml --json");
  ASSERT_EQ(b.code, 0) << b.err;
  const auto json_a = nlohmann::json::parse(a.out), json_b = nlohmann::json::parse(b.out);
  EXPECT_EQ(json_a["config"], json_b["config"]);
  EXPECT_EQ(json_a["origins"]["train.steps"], "override");
  EXPECT_EQ(json_a["origins"]["model.d_model"], "a.yaml:2");
}

TEST_F(Cli, SchemaKnowsEveryKey) {
  const Outcome outcome = run("config schema");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto schema = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(schema["properties"]["train"]["properties"]["steps"]["default"], 1000);
  EXPECT_EQ(schema["properties"]["optimizer"]["additionalProperties"], false);
  EXPECT_TRUE(schema["properties"].contains("base"));
  temp_.write("a.yaml", "model: {d_model: 32, stack: {pattern: M-}}\n");
  const auto resolved = nlohmann::json::parse(run("config print a.yaml --json").out)["config"];
  for (const auto& [key, value] : resolved.items()) {
    EXPECT_TRUE(schema["properties"].contains(key)) << key;
  }
}

TEST_F(Cli, DataBuildAndInspect) {
  temp_.write("a.txt", "The quick brown fox jumps over the lazy dog.\n");
  temp_.write("b.txt", "Sphinx of black quartz, judge my vow.\n");
  const Outcome built = run("data build a.txt b.txt --out text.h5 --json");
  ASSERT_EQ(built.code, 0) << built.err;
  EXPECT_EQ(nlohmann::json::parse(built.out)["train"]["documents"], 2);
  const Outcome shown = run("data inspect text.h5");
  ASSERT_EQ(shown.code, 0) << shown.err;
  EXPECT_NE(shown.out.find("documents: 2"), std::string::npos) << shown.out;
  EXPECT_EQ(nlohmann::json::parse(run("data inspect text.h5 --json").out)["documents"], 2);
  EXPECT_EQ(run("data inspect a.txt").code, 65);
  EXPECT_EQ(run("data inspect gone.h5").code, 74);
  expect_usage_error("data build a.txt", "--out is required");
}

}  // namespace
}  // namespace sluice::test
