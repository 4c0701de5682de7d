// What timing on a GPU needs beside operators: marks in a stream's work, and the size of its cache.
// A build without CUDA has gpu_host.cpp, which refuses.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/stream.h"

namespace sluice::bench {

// Points in a stream's work. They may be recorded again once the stream has passed them.
class Marks {
 public:
  explicit Marks(int64_t count);
  ~Marks();
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;

  // Enqueued; the host does not wait.
  void record(int64_t index, Stream stream);
  // The device's time from mark `index` to the next one. Both have been passed.
  double ms_after(int64_t index) const;

 private:
  std::vector<void*> events_;
};

size_t gpu_cache_bytes(Device device);  // of the L2

}  // namespace sluice::bench
