// For the HDF5 sources only: handles that close themselves, quiet errors, types.
#pragma once

#include <hdf5.h>

#include <string>
#include <utility>

#include "data/hdf5_file.h"
#include "kernels/core/error.h"

namespace sluice::hdf5 {

// An id and the function that closes it. A negative id is a failed call.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  ~Handle() { reset(); }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    reset();
    id_ = std::exchange(other.id_, -1);
    close_ = other.close_;
    return *this;
  }
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  hid_t release() { return std::exchange(id_, -1); }
  void reset() {
    if (id_ >= 0) close_(id_);
    id_ = -1;
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

// Every public function starts with this: the error stack is per thread, and by default it prints.
// Filters that are not built in are never loaded from the plug-in path.
void prepare_thread();

// Throws UsageError unless this HDF5 takes calls from several threads.
void require_thread_safety();

// The innermost message of this thread's error stack, or "no message".
std::string last_message();

hid_t file_type(StoredType type);    // little-endian
hid_t memory_type(StoredType type);  // native

inline void check_call(herr_t status, const char* call, const char* file, int line) {
  if (status >= 0) return;
  throw IoError(concat(file, ":", line, ": HDF5 failed: ", last_message(), " [", call, "]"));
}

}  // namespace sluice::hdf5

// For calls on a file that is built in memory: only memory can lack. A reader's failures are the
// file's fault and throw DataError with its name instead.
#define HDF5_CHECK(call)                                                 \
  do {                                                                   \
    ::sluice::hdf5::check_call(herr_t(call), #call, __FILE__, __LINE__); \
  } while (0)
