#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/backends.h"

namespace sluice::test {

std::vector<Backend> backends() {
  std::vector<Backend> all;
  all.push_back({"self", [](const std::function<void(Communicator&)>& body) {
                   const auto comm = make_self_communicator();
                   body(*comm);
                   comm->shutdown();
                 }});
  for (int size = 1; size <= 8; ++size) {
    all.push_back({concat("thread_", size), [size](const std::function<void(Communicator&)>& body) {
                     run_ranks(size, body);
                   }});
  }
  return all;
}

}  // namespace sluice::test
