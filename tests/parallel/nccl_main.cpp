// The suites of this folder on NCCL, a rank a GPU, as mpirun started them; and on a rank alone.
// Where the host has too few GPUs they are skipped (exit code 77). An argument asks for something
// else instead:
//   rates         prints what the verbs take, one JSON object a line
//   cannot-start  rank 1 fails to start NCCL
//   lost-peer     rank 1 dies between two verbs, and the others wait for it in the second
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "kernels/core/arena.h"
#include "kernels/core/device_memory.h"
#include "parallel/nccl_communicator.h"
#include "parallel/self_communicator.h"
#include "tests/parallel/backends.h"
#include "tests/parallel/mpirun_suites.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/parallel/staged_communicator.h"

namespace sluice::test {
namespace {

constexpr int kSkipped = 77;

World world;
std::unique_ptr<Communicator> device_world;  // null: this rank is alone

// A group of all ranks, through host memory.
void run_staged(const std::function<void(Communicator&)>& body) {
  run_or_abort(world, [&] {
    StagedCommunicator comm(device_world->split(0, world.comm->rank()), world.local_rank);
    body(comm);
    comm.shutdown();
  });
}

void run_alone(const std::function<void(Communicator&)>& body) {
  run_or_abort(world, [&] {
    StagedCommunicator comm(make_self_communicator(Place{device_of_rank()}), world.local_rank);
    body(comm);
  });
}

// Of a verb that moves `whole` over all ranks, or ends there.
void print_rate(Communicator& comm, Verb verb, const TensorView& whole, const TensorView& other) {
  constexpr int kWarmUp = 5, kRuns = 20;
  const Slice own = slice_of(whole.numel(), comm.size(), comm.rank());
  const TensorView part = whole.columns(own.begin, {own.size()});
  const std::vector<int64_t> counts(comm.size(), own.size());
  const auto enqueue = [&] {
    switch (verb) {
      case Verb::all_reduce:
        return comm.all_reduce(whole, ReduceOp::sum);
      case Verb::all_gather:
        return comm.all_gather(part, whole);
      case Verb::reduce_scatter:
        return comm.reduce_scatter(whole, part, ReduceOp::sum);
      default:
        return comm.all_to_all_v(whole, counts, other, counts);
    }
  };
  const auto seconds = [&](int runs) {
    comm.barrier().wait();
    const auto start = std::chrono::steady_clock::now();
    Event last;
    for (int i = 0; i < runs; ++i) last = enqueue();
    last.wait();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    return time.count() / runs;
  };
  seconds(kWarmUp);
  const int64_t sent_before = comm.traffic(verb).sent;
  const double time = seconds(kRuns);
  const double sent = double(comm.traffic(verb).sent - sent_before) / kRuns;
  if (comm.rank() > 0) return;
  std::printf("{\"verb\": \"%s\", \"bytes\": %lld, \"us\": %.1f, \"gb_s\": %.2f}\n", name_of(verb),
              static_cast<long long>(sent), 1e6 * time, 1e-9 * sent / time);
}

void print_rates() {
  constexpr int64_t kMost = int64_t{400} << 20;
  Communicator& comm = *device_world;
  const Buffer memory(2 * kMost, device_of_rank());
  for (const int64_t bytes : {int64_t{64} << 10, int64_t{4} << 20, int64_t{100} << 20, kMost}) {
    const int64_t elements = bytes / int64_t(sizeof(float)) / comm.size() * comm.size();
    char* const data = static_cast<char*>(memory.data());
    const TensorView whole(data, {elements}, DType::f32, device_of_rank());
    const TensorView other(data + kMost, {elements}, DType::f32, device_of_rank());
    for (const Verb verb :
         {Verb::all_reduce, Verb::all_gather, Verb::reduce_scatter, Verb::all_to_all_v})
      print_rate(comm, verb, whole, other);
  }
}

void lose_peer() {
  Communicator& comm = *device_world;
  comm.barrier().wait();
  if (comm.rank() == 1) raise(SIGKILL);
  comm.barrier().wait();
}

int run(int argc, char** argv) {
  world = make_world();
  int code = kSkipped;
  if (num_cuda_devices() < world.local_size) {
    std::printf("skipped: %d ranks, %d GPUs; built with NCCL %s\n", world.local_size,
                num_cuda_devices(), nccl_version().c_str());
  } else {
    run_or_abort(world, [&] {
      const auto asked_for = [&](const char* mode) {
        return argc == 2 && std::strcmp(argv[1], mode) == 0;
      };
      // An interface that is not there.
      if (asked_for("cannot-start") && world.comm->rank() == 1)
        setenv("NCCL_SOCKET_IFNAME", "none", /*overwrite=*/1);
      if (world.comm->size() > 1) {
        device_world = make_nccl_communicator(*world.comm, {.device = world.local_rank});
      }
      if (asked_for("rates")) {
        if (device_world) print_rates();
        code = 0;
      } else if (asked_for("cannot-start")) {
        if (device_world) device_world->barrier().wait();
        code = 0;
      } else if (asked_for("lost-peer")) {
        if (device_world) lose_peer();
        code = 0;
      } else {
        code = run_suites(argc, argv, world);
      }
      if (device_world) device_world->shutdown();
      device_world.reset();
    });
  }
  world.comm->shutdown();
  return code;
}

}  // namespace

const World& started_world() { return world; }

std::vector<Backend> backends() {
  std::vector<Backend> all = {{"alone", run_alone, /*host_memory=*/false}};
  if (device_world) all.push_back({"nccl", run_staged, /*host_memory=*/false});
  return all;
}

}  // namespace sluice::test

int main(int argc, char** argv) { return sluice::test::run(argc, argv); }
