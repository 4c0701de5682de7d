// Where a command runs: device: auto | cpu | cuda.
#pragma once

#include <string>

#include "kernels/core/device_memory.h"
#include "parallel/communicator.h"
#include "trainer/config.h"

namespace sluice {

// Of the words of the configuration. Throws UsageError.
DeviceChoice parse_device(const std::string& word);

// `local_rank`: among the ranks of this host, which take its GPUs in turn. Throws UsageError where
// the choice cannot be met, or cannot compute in `precision`.
Device choose_device(DeviceChoice choice, Precision precision, int local_rank = 0);

// The ranks of `world`, as communicators in the memory of `place`. On the CPU that is `world`
// itself.
class DeviceWorld {
 public:
  DeviceWorld(Communicator& world, const Place& place);

  Communicator& comm() const { return own_ ? *own_ : world_; }

 private:
  Communicator& world_;
  std::unique_ptr<Communicator> own_;
};

}  // namespace sluice
