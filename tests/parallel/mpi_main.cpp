// The suites of this folder on the ranks that mpirun started. With an argument, one of the ways a
// job can end instead; tests/CMakeLists.txt says with which exit code.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "parallel/world.h"
#include "tests/parallel/backends.h"
#include "tests/parallel/mpirun_suites.h"

namespace sluice::test {
namespace {

World world;

// One rank gives up while the others wait for it.
int end_by_abort() {
  if (world.comm->rank() == world.comm->size() - 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    world.comm->abort(ExitCode::hang);
  }
  world.comm->barrier().wait();
  return 0;
}

// An exception leaves with a verb in flight; main's handler aborts.
int end_by_exception() {
  try {
    const auto group = world.comm->split(0, 0);
    if (world.comm->rank() == 0) {
      const Event never = group->barrier();
      throw DataError("a shard cannot be read");
    }
    std::this_thread::sleep_for(std::chrono::seconds(20));
  } catch (const Error& error) {
    world.comm->abort(error.code());
  }
  return 0;
}

// Without check_calls: a rank that skipped a collective is noticed at the next.
int end_by_skipped_call() {
  try {
    double value = 1;
    if (world.comm->rank() == 0) world.comm->broadcast(TensorView(&value, {1}), 0).wait();
    world.comm->all_reduce(TensorView(&value, {1}), ReduceOp::sum).wait();
    std::this_thread::sleep_for(std::chrono::seconds(20));
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    world.comm->abort(error.code());
  }
  return 0;
}

int run(int argc, char** argv) {
  const auto is = [&](const char* word) { return argc == 2 && std::strcmp(argv[1], word) == 0; };
  try {
    world = make_world({.message_limit = 1000, .check_calls = !is("skipped-call")});
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return int(error.code());
  }
  if (is("abort")) return end_by_abort();
  if (is("exception")) return end_by_exception();
  if (is("skipped-call")) return end_by_skipped_call();
  const int failed = run_suites(argc, argv, world);
  const bool sane =
      world.local_size == world.comm->size() && world.local_rank == world.comm->rank();
  if (!sane) std::fprintf(stderr, "local rank %d of %d\n", world.local_rank, world.local_size);
  const int64_t any_failed = reduce_value(*world.comm, int64_t{failed || !sane}, ReduceOp::max);
  world.comm->shutdown();
  return int(any_failed);
}

}  // namespace

std::vector<Backend> backends() {
  return {{"mpi", [](const std::function<void(Communicator&)>& body) {
             run_or_abort(world, [&] { body(*world.comm); });
           }}};
}

}  // namespace sluice::test

int main(int argc, char** argv) { return sluice::test::run(argc, argv); }
