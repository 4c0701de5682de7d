// Ranks as processes, through MPI, in host memory. The only file that knows MPI is the .cpp.
//
// All MPI calls of a process, MPI_Init and MPI_Finalize too, are made by one worker thread, which
// polls and sleeps while it waits: the cores belong to the computation.
#pragma once

#include "parallel/world.h"

namespace sluice {

// Starts MPI. Throws UsageError if MPI sees another number of ranks than the launcher.
World make_mpi_world(const Launcher& launcher, const WorldOptions& options);

}  // namespace sluice
