// Working memory for the tiles of one task, kept by each thread from task to task. For tiles of at
// most about a megabyte whose size does not depend on the number of tokens; everything bigger comes
// from the scratch arena.
#pragma once

#include "kernels/core/arena.h"

namespace sluice::cpu {

class TileMemory {
 public:
  // Room for `elements` of T in `pieces` pieces. A thread has one TileMemory at a time.
  template <class T>
  static TileMemory of(int64_t elements, int64_t pieces) {
    return TileMemory((elements + pieces * kLine) * sizeof(T));
  }
  template <class T>
  T* take(int64_t elements) {
    const size_t begin = used_;
    used_ += align_up(elements * sizeof(T), kLine);
    SLUICE_CHECK(used_ <= memory().bytes(), "tiles of ", used_, " bytes exceed the announced ",
                 memory().bytes());
    return reinterpret_cast<T*>(static_cast<char*>(memory().data()) + begin);
  }

 private:
  static constexpr int64_t kLine = 64;  // bytes: every piece starts a cache line

  explicit TileMemory(size_t bytes) {
    if (memory().bytes() < bytes) memory() = Buffer(bytes, kCpu);
  }
  static Buffer& memory() {
    thread_local Buffer buffer;
    return buffer;
  }

  size_t used_ = 0;
};

}  // namespace sluice::cpu
