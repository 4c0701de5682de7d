// In place of nccl_communicator.cpp where CUDA or NCCL is missing.
#include "parallel/nccl_communicator.h"

namespace sluice {

std::string nccl_version() { return "none"; }

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, const NcclOptions&) {
  throw UsageError("sluice was built without NCCL: configure with -DSLUICE_WITH_CUDA=ON");
}

}  // namespace sluice
