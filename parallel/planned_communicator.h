// A group of which only this rank's place is there. It moves nothing, its events are done, its
// views may hold null; its counters say what the real group would move: the same code counts
// (HostCommunicator). With it `plan` and the counting of arenas run the code of a real step.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace sluice {

// split() is refused: who else is in the group is not known. A planned Mesh has all groups.
std::unique_ptr<Communicator> make_planned_communicator(int size, int rank);

}  // namespace sluice
