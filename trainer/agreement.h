// Failing together. What goes wrong on one rank must end the job on all of them, with one message
// and one exit code, and without a rank left waiting for the others.
#pragma once

#include <functional>

#include "parallel/world.h"
#include "trainer/checkpoint/peers.h"

namespace sluice {

// Thrown on every rank alike: each may leave in good order, one prints.
class AgreedFailure : public Error {
 public:
  using Error::Error;
};

// Collective. Runs `work` on every rank; if it throws on any, throws AgreedFailure on all, with the
// first rank's message. `work` must not communicate.
void agree(CheckpointPeers& peers, const std::function<void()>& work);

// Runs the body of a command on a world and ends it: shut down after success and after an
// AgreedFailure, aborted after anything else. Returns the exit code; errors have been printed.
int run_on_world(World& world, const std::function<int()>& body);

}  // namespace sluice
