// The suites of this folder on NCCL, with a thread as a rank on every GPU. Without GPUs it is
// skipped (exit code 77).
#include <cuda_runtime_api.h>

#include <cstdio>

#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/backends.h"
#include "tests/parallel/staged_communicator.h"

namespace sluice::test {
namespace {

constexpr int kSkipped = 77;

int count_devices() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

}  // namespace

std::vector<Backend> backends() {
  std::vector<Backend> all;
  for (int size = 1; size <= count_devices(); ++size) {
    const auto run = [size](const std::function<void(Communicator&)>& body) {
      run_ranks(size, [&](Communicator& host) {
        cudaSetDevice(host.rank());
        StagedCommunicator comm(make_nccl_communicator(host, {.device = host.rank()}), host.rank());
        body(comm);
        comm.shutdown();
      });
    };
    all.push_back({concat("nccl_", size), run, /*host_memory=*/false});
  }
  return all;
}

}  // namespace sluice::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (sluice::test::count_devices() == 0) {
    std::printf("skipped: no GPU; built with NCCL %s\n", sluice::nccl_version().c_str());
    return sluice::test::kSkipped;
  }
  return RUN_ALL_TESTS();
}
