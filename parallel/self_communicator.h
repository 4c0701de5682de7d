// The world of one rank.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace sluice {

// In host memory.
std::unique_ptr<Communicator> make_self_communicator();
// In the memory of `place`: what a verb copies, it copies on the stream.
std::unique_ptr<Communicator> make_self_communicator(const Place& place);

}  // namespace sluice
