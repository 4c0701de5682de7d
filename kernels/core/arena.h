// Buffer owns memory; Arena hands it out like a stack. The backward pass releases what the forward
// pass allocated, in reverse, so one arena serves a whole step and is allocated once.
//
// A counting arena has no memory: it hands out views whose data is null and remembers the peak. The
// model run once with counting arenas tells `sluice plan`, and the trainer, exactly what is needed.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/core/tensor.h"

namespace sluice {

inline constexpr size_t kAlignment = 256;  // of every allocation, in bytes

constexpr size_t align_up(size_t bytes, size_t alignment = kAlignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// Zero-filled memory, aligned to kAlignment. Throws IoError naming the size if there is too little.
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, Device device);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_ = kCpu;
};

class Arena {
 public:
  using Mark = size_t;

  Arena(const char* name, size_t capacity, Device device);
  static Arena counting(const char* name, Device device);

  bool counting() const { return counting_; }
  Device device() const { return device_; }
  size_t used() const { return used_; }
  size_t peak() const { return peak_; }
  size_t capacity() const { return buffer_.bytes(); }

  // Uninitialised memory. Throws Error(bug) naming both sizes when the arena is too small: it was
  // sized by a counting run of the same code, so that means the two runs differed.
  TensorView alloc(const Dims& dims, DType dtype);
  // The same with rows padded to a multiple of 64 bytes: for projections that are sliced by column.
  TensorView alloc_padded_rows(const Dims& dims, DType dtype);

  Mark mark() const { return used_; }
  void release(Mark mark);

 private:
  Arena(const char* name, Device device) : name_(name), device_(device), counting_(true) {}
  void* take(size_t bytes);

  const char* name_;
  Device device_;
  Buffer buffer_;
  size_t used_ = 0;
  size_t peak_ = 0;
  bool counting_ = false;
};

// Releases on leaving the scope what was allocated in it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace sluice
