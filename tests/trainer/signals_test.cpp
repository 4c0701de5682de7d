#include "trainer/signals.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace sluice::test {
namespace {

TEST(Signals, StopAndCheckpointAreFlags) {
  for (const int number : {SIGTERM, SIGUSR1, SIGINT}) {
    SignalFlags flags;
    EXPECT_FALSE(flags.stop_requested());
    std::raise(number);
    EXPECT_EQ(flags.stop_signal(), number);
  }
  SignalFlags flags;
  EXPECT_FALSE(flags.take_checkpoint_request());
  std::raise(SIGUSR2);
  std::raise(SIGUSR2);
  EXPECT_TRUE(flags.take_checkpoint_request());
  EXPECT_FALSE(flags.take_checkpoint_request());
  EXPECT_FALSE(flags.stop_requested());
}

TEST(Signals, ASecondOneQuitsAtOnce) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto twice = [](int first, int second) {
    SignalFlags flags;
    std::raise(first);
    std::raise(second);
  };
  EXPECT_EXIT(twice(SIGUSR1, SIGTERM), testing::ExitedWithCode(128 + SIGTERM), "");
  EXPECT_EXIT(twice(SIGTERM, SIGUSR1), testing::ExitedWithCode(128 + SIGUSR1), "");
}

TEST(Signals, WhatWasThereComesBack) {
  const auto before = std::signal(SIGUSR2, SIG_IGN);
  { SignalFlags flags; }
  EXPECT_EQ(std::signal(SIGUSR2, before), SIG_IGN);
}

TEST(Signals, ABlockedOneArrives) {
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  {
    SignalFlags flags;
    std::raise(SIGUSR1);
    EXPECT_TRUE(flags.stop_requested());
  }
  sigset_t after;
  pthread_sigmask(SIG_SETMASK, &before, &after);
  EXPECT_TRUE(sigismember(&after, SIGUSR1));
}

TEST(Signals, OneAtATime) {
  SignalFlags flags;
  EXPECT_THROW(SignalFlags{}, Error);
}

}  // namespace
}  // namespace sluice::test
