// Where a command runs: device: auto | cpu | cuda.
#pragma once

#include <string>

#include "kernels/core/device_memory.h"
#include "parallel/communicator.h"
#include "trainer/config.h"

namespace sluice {

// Of the words of the configuration. Throws UsageError.
DeviceChoice parse_device(const std::string& word);

// Ranks of this host take its GPUs in turn.
struct LocalRank {
  int rank = 0;
  int size = 1;
};
// Of this host; why there are none, if so.
struct FoundGpus {
  int count = 0;
  std::string why_none = {};
};
// Throws UsageError where the choice cannot be met, or cannot compute in `precision`.
Device choose_device(DeviceChoice choice, Precision precision, const LocalRank& local = {});
Device choose_device(DeviceChoice choice, Precision precision, const LocalRank& local,
                     const FoundGpus& gpus);

// The ranks of `world`, as communicators in the memory of `place`. On the CPU that is `world`
// itself.
class DeviceWorld {
 public:
  DeviceWorld(Communicator& world, const Place& place);

  Communicator& comm() const { return own_ ? *own_ : world_; }

  // Collective, on the way to a good end: after the meshes of comm(), before the world's.
  void shutdown();
  // On a bad one, before memory is freed: no kernel waits for other ranks any more.
  void give_up();

 private:
  Communicator& world_;
  std::unique_ptr<Communicator> own_;
};

}  // namespace sluice
