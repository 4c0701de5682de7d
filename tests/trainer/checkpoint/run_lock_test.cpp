#include "trainer/checkpoint/run_lock.h"

#include <sys/wait.h>

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

TEST(RunLock, TheSecondIsRefusedByTheHoldersName) {
  const TempFolder folder;
  const std::string run = folder.path() + "/runs/one";
  {
    const RunLock lock(run);
    const std::string message = error_of([&] { RunLock second(run); }, ExitCode::usage);
    EXPECT_TRUE(contains(message, run + " is locked by pid " + std::to_string(::getpid()) + " on "))
        << message;
    EXPECT_TRUE(contains(message, " since 20")) << message;
    const RunLock other(folder.path() + "/runs/two");
  }
  const RunLock again(run);
}

// Races for one folder: one process gets it, whoever it is, and a killed one gives it up.
TEST(RunLock, OneOfManyWins) {
  const TempFolder folder;
  for (int race = 0; race < 10; ++race) {
    std::vector<pid_t> children;
    int gate[2];
    ASSERT_EQ(::pipe(gate), 0);
    for (int child = 0; child < 4; ++child) {
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::close(gate[1]);
        try {
          const RunLock lock(folder);
          char byte = 0;
          if (::read(gate[0], &byte, 1) != 0) ::_exit(9);  // until the parent closes the gate
          ::_exit(0);
        } catch (const UsageError&) {
          ::_exit(2);
        }
      }
      children.push_back(pid);
    }
    ::close(gate[0]);
    // The losers leave; only then may the winner.
    int losers = 0;
    while (losers < 3) {
      int status = 0;
      ASSERT_GT(::wait(&status), 0);
      ASSERT_TRUE(WIFEXITED(status));
      ASSERT_EQ(WEXITSTATUS(status), 2);
      losers += 1;
    }
    ::close(gate[1]);
    int status = 0;
    ASSERT_GT(::wait(&status), 0);
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

}  // namespace
}  // namespace sluice::test
