// The suites of an executable on the ranks that mpirun started.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <functional>

#include "parallel/world.h"

namespace sluice::test {

// Runs `body`. A rank that fails alone would leave the others waiting: it ends the job, as the
// program does, with the error's code.
inline void run_or_abort(const World& world, const std::function<void()>& body) {
  const auto end = [&](const std::exception& error, ExitCode code) {
    std::fprintf(stderr, "[rank %d] %s\n", world.comm->rank(), error.what());
    world.comm->abort(code);
  };
  try {
    body();
  } catch (const Error& error) {
    end(error, error.code());
  } catch (const std::exception& error) {
    end(error, ExitCode::bug);
  }
}

// Rank 0 prints; the others tell their failures. Returns whether any failed, on all ranks alike.
inline int run_suites(int argc, char** argv, const World& world) {
  testing::InitGoogleTest(&argc, argv);
  struct Failures : testing::EmptyTestEventListener {
    explicit Failures(int rank) : rank(rank) {}
    void OnTestPartResult(const testing::TestPartResult& result) override {
      if (!result.failed()) return;
      std::fprintf(stderr, "[rank %d] %s:%d: %s\n", rank, result.file_name(), result.line_number(),
                   result.message());
    }
    int rank;
  };
  if (world.comm->rank() != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Failures(world.comm->rank()));
  }
  const int64_t failed = RUN_ALL_TESTS();
  return int(reduce_value(*world.comm, failed, ReduceOp::max));
}

}  // namespace sluice::test
