// What a suite over communicators runs on. Two executables hold the same suites: parallel_test on
// self and thread ranks, parallel_mpi_test on the world that mpirun started.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace sluice::test {

struct Backend {
  std::string name;
  // Runs the body once per rank; rethrows the first exception of a rank, or ends the job.
  std::function<void(const std::function<void(Communicator&)>&)> run;
  // What NCCL leaves open: the order of sums, NaN in max, u16, and how ranks that disagree learn
  // it.
  bool host_memory = true;
};
inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }

std::vector<Backend> backends();  // one definition per executable

class OnBackend : public testing::TestWithParam<Backend> {
 protected:
  void run(const std::function<void(Communicator&)>& body) { GetParam().run(body); }
  bool host_memory() const { return GetParam().host_memory; }
};

// The world must be of a type that gtest knows when it registers tests: names come from here.
inline std::string backend_name(const testing::TestParamInfo<Backend>& info) {
  return info.param.name;
}

}  // namespace sluice::test
