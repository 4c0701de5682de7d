// The world of one rank.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace sluice {

std::unique_ptr<Communicator> make_self_communicator();

}  // namespace sluice
