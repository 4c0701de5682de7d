// How large messages go between processes of one host. Open MPI's shared memory transport copies
// them once, straight out of the sender's memory (process_vm_readv), or twice, in pieces through a
// shared queue, which only moves while both sides poll: a step of a 130M model over two ranks took
// 13.2 s so, and 11.6 s with one copy. But some containers forbid that system call, and Open MPI 4
// finds out in the middle of a message, too late.
#pragma once

namespace sluice {

// Whether the kernel lets this process make that call at all.
bool may_copy_out_of_peers();

// Before MPI_Init: tells Open MPI to copy twice where once is forbidden, unless the user has
// decided (OMPI_MCA_btl_vader_single_copy_mechanism).
void choose_copies();

}  // namespace sluice
