// Memory of the host, zero-filled and aligned to kAlignment.
#pragma once

#include <cstddef>

namespace sluice {

// Null for 0 bytes. Throws IoError naming the size and what to lower.
void* allocate_host_bytes(size_t bytes);
void free_host_bytes(void* data) noexcept;

size_t host_memory_bytes();

}  // namespace sluice
