// Ranks as processes with one GPU each, through NCCL, in device memory. Built where CUDA and NCCL
// are (SLUICE_WITH_CUDA); without them nccl_absent.cpp stands in.
//
// It keeps the contract of parallel/communicator.h with two exceptions that are NCCL's: the order
// of sums is a function of ranks and topology, and a NaN may lose a max. u16 is moved, not reduced.
// Traffic is counted as the host's algorithms move it, so that plan and counters agree: what NCCL
// does inside is not visible.
//
// Every communicator has a stream of its own. A verb begins when the compute stream has come to
// where the verb was called, and nobody waits before an event's wait() or order(): so verbs run
// beside what the compute stream is given next, and may be recorded in a DeviceGraph with it. Such
// a graph must be gone before shutdown().
//
// abort() gives up this communicator and the groups that were split from it: no kernel waits for a
// peer any more, so that memory can be freed. Ending the peers is the host communicator's part. A
// group of one rank is a self communicator.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace sluice {

// "2.28.3", or "none".
std::string nccl_version();

struct NcclOptions {
  int device = 0;      // index of this rank's GPU
  Stream stream = {};  // that produces what verbs send: a verb runs after its earlier work
};

// Collective over `host`, which must outlive the result and has the same ranks; it carries the
// identifiers of NCCL's groups. Throws UsageError if sluice was built without NCCL.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host,
                                                     const NcclOptions& options);

}  // namespace sluice
