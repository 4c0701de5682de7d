#include "kernels/core/host_memory.h"

#include <cstdlib>
#include <cstring>

#include "kernels/core/arena.h"

namespace sluice {

void* allocate_host_bytes(size_t bytes) {
  if (bytes == 0) return nullptr;
  const size_t rounded = align_up(bytes);
  void* const data = std::aligned_alloc(kAlignment, rounded);
  if (data == nullptr) {
    throw IoError(concat("cannot allocate ", bytes,
                         " bytes of memory; lower train.micro_batch or set train.recompute: full"));
  }
  std::memset(data, 0, rounded);
  return data;
}

void free_host_bytes(void* data) noexcept { std::free(data); }

}  // namespace sluice
