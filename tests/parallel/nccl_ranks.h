// The ranks of parallel_nccl_test, for the tests that are NCCL's alone.
#pragma once

#include "parallel/world.h"

namespace sluice::test {

// As mpirun started them, in host memory.
const World& started_world();
inline Device device_of_rank() { return {Device::Kind::cuda, int8_t(started_world().local_rank)}; }

}  // namespace sluice::test
