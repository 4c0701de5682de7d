// The communicator of all ranks that the launcher started.
//
//   World world = make_world();
//   set_num_threads(default_num_threads(world.local_size));
//   ... world.comm->split(...), Mesh(*world.comm, shape) ...
//   world.comm->shutdown();   // every rank, on the way to a good end
//   world.comm->abort(code);  // any rank, on a bad one
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace sluice {

// What the launcher's environment says before MPI is asked. One rank if there is no launcher.
struct Launcher {
  std::string name;  // "Open MPI", "Slurm with PMIx", ...; empty: none
  int size = 1;      // 0: it does not say
};
using Environment = std::function<const char*(const char* variable)>;  // null if not set
// Throws UsageError if the variables contradict themselves, or tasks were started without MPI.
Launcher find_launcher(const Environment& environment);

struct World {
  std::unique_ptr<Communicator> comm;
  int local_rank = 0;  // among the ranks of this host
  int local_size = 1;
};

struct WorldOptions {
  int64_t message_limit = int64_t{1} << 30;  // bytes; longer messages travel in pieces
  bool check_calls = false;  // compare verb, dtype and size over ranks before every collective
};

// Without a launcher's variables MPI is not started and the world is the self communicator. Throws
// UsageError where the launcher says more than one rank and MPI says one.
World make_world(const WorldOptions& options = {});

}  // namespace sluice
