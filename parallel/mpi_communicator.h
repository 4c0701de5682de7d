// Ranks as processes, through MPI, in host memory. The only file that knows MPI is the .cpp.
//
// Every group has a worker thread, which polls and sleeps while it waits: the cores belong to the
// computation. One at a time is inside MPI (MPI_THREAD_SERIALIZED), for a moment only: a lock is
// never held while a peer is waited for.
#pragma once

#include "parallel/world.h"

namespace sluice {

// Starts MPI. Throws UsageError if MPI sees another number of ranks than the launcher.
World make_mpi_world(const Launcher& launcher, const WorldOptions& options);

}  // namespace sluice
