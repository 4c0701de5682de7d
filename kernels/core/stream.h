// A stream orders work. On the CPU work runs inline and every verb is a no-op; on a GPU `handle` is
// the device's stream.
#pragma once

#include "kernels/core/device.h"

namespace sluice {

struct Stream {
  void* handle = nullptr;

  // Waits for what was enqueued, and throws what went wrong in it.
  void sync() const;
};

// Where something runs.
struct Place {
  Device device = kCpu;
  Stream stream = {};
};

}  // namespace sluice
