#include "parallel/single_copy.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cstdlib>

namespace sluice {

// Reading one's own memory passes every check but that of the call itself (seccomp). Who may read
// whose memory (Yama) Open MPI arranges between its ranks.
bool may_copy_out_of_peers() {
  char from = 1;
  char to = 0;
  const iovec local = {.iov_base = &to, .iov_len = 1};
  const iovec remote = {.iov_base = &from, .iov_len = 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1 && to == from;
}

void choose_copies() {
  if (!may_copy_out_of_peers()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

}  // namespace sluice
