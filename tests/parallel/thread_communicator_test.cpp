#include "parallel/thread_communicator.h"

#include <gtest/gtest.h>

#include <atomic>

namespace sluice::test {
namespace {

TEST(ThreadCommunicator, AnExceptionInOneRankReachesTheOthers) {
  std::atomic<int> told = 0;
  try {
    run_ranks(4, [&](Communicator& comm) {
      if (comm.rank() == 2) throw DataError("shard 7 is empty");
      const auto wait = [&] { comm.barrier().wait(); };
      try {
        wait();
      } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "rank 2 failed: shard 7 is empty");
        ++told;
        throw;
      }
    });
    ADD_FAILURE() << "run_ranks swallowed the exception";
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(), "shard 7 is empty");
  }
  EXPECT_EQ(told, 3);
}

TEST(ThreadCommunicator, AbortEndsEveryWait) {
  std::atomic<int> told = 0;
  run_ranks(3, [&](Communicator& comm) {
    if (comm.rank() == 0) comm.abort(ExitCode::not_finite);
    try {
      comm.barrier().wait();
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "rank 0 gave up with exit code 77");
      EXPECT_EQ(error.code(), ExitCode::hang);
      ++told;
    }
  });
  EXPECT_EQ(told, 3);
}

TEST(ThreadCommunicator, WaitingForARankThatHasLeftIsAnError) {
  double value = 0;
  const auto receive = [&](Communicator& comm) {
    if (comm.rank() == 0) comm.recv(TensorView(&value, {1}), 1).wait();
  };
  EXPECT_THROW(run_ranks(2, receive), Error);
  const auto send = [&](Communicator& comm) {
    if (comm.rank() == 0) comm.send(TensorView(&value, {1}), 1).wait();
  };
  EXPECT_THROW(run_ranks(2, send), Error);
}

TEST(ThreadCommunicator, LeavingWithAVerbInFlightIsAnError) {
  double value = 0;
  EXPECT_THROW(run_ranks(2,
                         [&](Communicator& comm) {
                           if (comm.rank() == 0) comm.recv(TensorView(&value, {1}), 1);
                           if (comm.rank() == 1) comm.recv(TensorView(&value, {1}), 0).wait();
                         }),
               Error);
}

TEST(ThreadCommunicator, OneThreadPerRank) {
  run_ranks(3, [](Communicator& comm) {
    int threads = 0;
#pragma omp parallel reduction(+ : threads)
    threads += 1;
    EXPECT_EQ(threads, 1) << "rank " << comm.rank();
  });
}

}  // namespace
}  // namespace sluice::test
