#include "trainer/run_folder.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "tests/support/temp_folder.h"
#include "trainer/environment.h"

namespace sluice::test {
namespace {

TEST(RunFolder, IsCreatedLockedAndReleased) {
  TempFolder temp;
  const std::string path = temp / "a/b";
  {
    RunFolder folder(path);
    try {
      RunFolder second(path);
      FAIL() << "locked twice";
    } catch (const UsageError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("is locked by pid " + std::to_string(::getpid()) + " on "),
                std::string::npos)
          << text;
      EXPECT_NE(text.find(" since 20"), std::string::npos) << text;
      EXPECT_NE(text.find("--run DIR"), std::string::npos) << text;
    }
  }
  RunFolder again(path);
}

TEST(RunFolder, TheLockOfADeadProcessIsFree) {
  TempFolder temp;
  const pid_t child = ::fork();
  if (child == 0) {
    auto* folder = new RunFolder(temp / "run");
    ::_exit(folder->path().empty() ? 1 : 0);  // as kill -9: no destructor runs
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  RunFolder folder(temp / "run");
}

TEST(RunFolder, OfManyRacingProcessesOneGetsIt) {
  TempFolder temp;
  for (int round = 0; round < 50; ++round) {
    int go[2], done[2];
    ASSERT_EQ(::pipe(go) | ::pipe(done), 0);
    constexpr int kProcesses = 4;
    for (int i = 0; i < kProcesses; ++i) {
      if (::fork() != 0) continue;
      char outcome = 'e', start;
      ::close(go[1]);
      [[maybe_unused]] ssize_t ignored = ::read(go[0], &start, 1);  // ends when all exist
      try {
        RunFolder folder(temp / "run");
        outcome = 'y';
        ignored = ::write(done[1], &outcome, 1);
        ::usleep(20000);
        ::_exit(0);
      } catch (const UsageError&) {
        outcome = 'n';
      } catch (...) {
      }
      ignored = ::write(done[1], &outcome, 1);
      ::_exit(0);
    }
    ::close(go[0]);
    ::close(go[1]);
    std::string outcomes(kProcesses, ' ');
    for (char& outcome : outcomes) ASSERT_EQ(::read(done[0], &outcome, 1), 1);
    for (int i = 0; i < kProcesses; ++i) ::wait(nullptr);
    ::close(done[0]);
    ::close(done[1]);
    EXPECT_EQ(std::count(outcomes.begin(), outcomes.end(), 'e'), 0);
    EXPECT_GE(std::count(outcomes.begin(), outcomes.end(), 'y'), 1);
  }
}

TEST(RunFolder, ChildProcessesDoNotInheritTheLock) {
  TempFolder temp;
  auto folder = std::make_unique<RunFolder>(temp / "run");
  const pid_t child = ::fork();
  if (child == 0) {
    ::execlp("sleep", "sleep", "5", nullptr);
    ::_exit(1);
  }
  ::usleep(200000);  // until exec has closed the descriptor
  folder.reset();
  RunFolder again(temp / "run");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST(RunFolder, RefusesWhatIsNoFolder) {
  TempFolder temp;
  const std::string file = temp.write("file", "x");
  EXPECT_THROW(RunFolder{file}, IoError);
  EXPECT_THROW(RunFolder{file + "/below"}, IoError);
  EXPECT_THROW(RunFolder{"/proc/no/such"}, IoError);
}

TEST(RunFolder, WritesItsFilesWhole) {
  TempFolder temp;
  RunFolder folder(temp / "run");
  folder.write_config("name: x\n");
  folder.write_config("name: y\n");
  EXPECT_EQ(temp.read("run/config.yaml"), "name: y\n");
  folder.write_environment(
      environment_json({.world = 2, .threads = 3, .device = "cpu", .arguments = {"train"}}));
  const nlohmann::json json = nlohmann::json::parse(temp.read("run/env.json"));
  EXPECT_EQ(json["world"], 2);
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_EQ(json["arguments"][0], "train");
  EXPECT_TRUE(json["commit"].is_string());
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    files += entry.is_regular_file();
  }
  EXPECT_EQ(files, 3);  // and the lock: no temporary file stays
}

TEST(RunFolder, PathComesFromTheOptionOrTheName) {
  EXPECT_EQ(run_folder_path("", "tiny"), "runs/tiny");
  EXPECT_EQ(run_folder_path("/data/x", "tiny"), "/data/x");
}

}  // namespace
}  // namespace sluice::test
