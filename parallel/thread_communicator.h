// Ranks as threads of one process: every parallel test is an ordinary unit test, and `sluice
// verify` needs no launcher.
#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace sluice {

// Runs `body` once per rank, each in a thread of its own with one OpenMP thread, and returns when
// all are done. If a rank throws, waits of the others throw too; the first exception is rethrown.
// A rank that waits for one that has returned is told so instead of waiting for ever.
void run_ranks(int size, const std::function<void(Communicator&)>& body);

}  // namespace sluice
