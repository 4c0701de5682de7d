// train.reproducible: layout, on as many GPUs as mpirun has started ranks: the bits of one GPU.
// Where the host has too few GPUs it is skipped (exit code 77).
#include <cstdio>

#include "parallel/nccl_communicator.h"
#include "tests/parallel/mpirun_suites.h"
#include "tests/support/engine_on.h"

namespace sluice::test {
namespace {

constexpr int kSkipped = 77;
constexpr int kSteps = 5;  // launched anew, recorded, and from the graph

World world;

// All ranks as dp, for every test.
struct DataParallel {
  Device device{Device::Kind::cuda, int8_t(world.local_rank)};
  OwnedStream stream{device};
  Place place{.device = device, .stream = stream};
  std::unique_ptr<Communicator> comm =
      make_nccl_communicator(*world.comm, {.device = device.index, .stream = stream});
  Mesh mesh{*comm, {.dp = world.comm->size()}};
};
std::unique_ptr<DataParallel> ranks;

Config config_of(const std::string& pattern, int64_t zero, int64_t micro_batches_of_rank) {
  Config config = small_config(pattern);
  config.train.global_batch = config.train.micro_batch * micro_batches_of_rank * world.comm->size();
  config.train.reproducible = Reproducible::layout;
  config.optimizer.clip = 0.5;  // so that the norm's bits count
  config.parallel.zero = zero;
  return config;
}

struct Trace {
  std::vector<double> losses, norms;
  std::vector<double> gradients;  // of the last step
  std::vector<double> values;     // in the end: masters
  std::vector<bool> held;         // whether this rank has kept the master up to date
};

// By element, in the order of values(). With ZeRO a rank has others' matrices only as bf16.
std::vector<bool> held_masters(const StepEngine& engine) {
  std::vector<bool> held;
  for (const Parameter& parameter : engine.store().parameters()) {
    const int64_t end = parameter.offset + parameter.dims.numel();
    std::vector<bool> of_parameter(parameter.dims.numel(), false);
    for (const Slice& part : engine.arena().held().within(parameter.offset, end)) {
      std::fill(of_parameter.begin() + (part.begin - parameter.offset),
                of_parameter.begin() + (part.end - parameter.offset), true);
    }
    held.insert(held.end(), of_parameter.begin(), of_parameter.end());
  }
  return held;
}

Trace trace(EngineOn&& on) {
  Trace trace;
  for (int step = 0; step < kSteps; ++step) {
    const StepReport report = on.step(/*stage_next=*/step + 1 < kSteps);
    trace.losses.push_back(report.loss);
    trace.norms.push_back(report.grad_norm);
  }
  trace.gradients = on.gradients();
  trace.values = on.values();
  trace.held = held_masters(on.engine());
  return trace;
}

// A sum is a subtree if dp is a power of two, or with zero 2 a rank's number of micro-batches.
TEST(LayoutNccl, DpHasTheBitsOfOneRank) {
  for (const char* pattern : {"M-*-", "SE"}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const int64_t zero : {0, 1, 2}) {
        for (const int64_t of_rank : {int64_t{1}, zero == 2 ? int64_t{4} : int64_t{3}}) {
          SCOPED_TRACE(concat(pattern, ", ", name_of(dtype), ", zero ", zero, ", ", of_rank,
                              " micro-batches a rank"));
          const Config config = config_of(pattern, zero, of_rank);
          const Trace one = trace(EngineOn(config, dtype, ranks->device));
          const Trace all = trace(EngineOn(config, dtype, ranks->mesh, ranks->place));
          EXPECT_EQ(all.losses, one.losses);
          EXPECT_EQ(all.norms, one.norms);
          EXPECT_TRUE(all.gradients == one.gradients);
          ASSERT_EQ(all.values.size(), one.values.size());
          int64_t compared = 0, unequal = 0;
          for (size_t i = 0; i < all.values.size(); ++i) {
            compared += all.held[i];
            unequal += all.held[i] && all.values[i] != one.values[i];
          }
          EXPECT_GT(compared, 0);
          EXPECT_EQ(unequal, 0) << "of " << compared << " masters";
          EXPECT_NE(all.losses.front(), all.losses.back());
        }
      }
    }
  }
}

TEST(LayoutNccl, SendsWhatIsPlanned) {
  for (const int64_t zero : {0, 1, 2}) {
    const Config config = config_of("M-", zero, 2);
    const Mesh planned(ranks->mesh.shape(), world.comm->rank());
    StepEngine counting(config, planned, DType::bf16, {.device = ranks->device});
    counting.count_step();
    Communicator& group = ranks->mesh.joined({Axis::dp, Axis::cp});
    int64_t before[kNumVerbs];
    for (int verb = 0; verb < kNumVerbs; ++verb) before[verb] = group.traffic(Verb(verb)).sent;
    EngineOn on(config, DType::bf16, ranks->mesh, ranks->place);
    on.step();
    EXPECT_EQ(on.engine().memory().gradients, counting.memory().gradients);
    for (int verb = 0; verb < kNumVerbs; ++verb) {
      EXPECT_EQ(group.traffic(Verb(verb)).sent - before[verb],
                planned.joined({Axis::dp, Axis::cp}).traffic(Verb(verb)).sent)
          << name_of(Verb(verb)) << ", zero " << zero;
    }
  }
}

int run(int argc, char** argv) {
  world = make_world();
  int code = kSkipped;
  if (world.comm->size() < 2 || num_cuda_devices() < world.local_size) {
    std::printf("skipped: %d ranks, %d GPUs; built with NCCL %s\n", world.comm->size(),
                num_cuda_devices(), nccl_version().c_str());
  } else {
    run_or_abort(world, [&] {
      ranks = std::make_unique<DataParallel>();
      code = run_suites(argc, argv, world);
      ranks->mesh.shutdown();
      ranks->comm->shutdown();
      ranks.reset();
    });
  }
  world.comm->shutdown();
  return code;
}

}  // namespace
}  // namespace sluice::test

int main(int argc, char** argv) { return sluice::test::run(argc, argv); }
