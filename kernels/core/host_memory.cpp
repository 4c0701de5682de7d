#include "kernels/core/host_memory.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/core/arena.h"
#include "kernels/core/device_memory.h"

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

size_t host_memory_bytes() {
  return size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGE_SIZE));
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

StreamMark::StreamMark(StreamMark&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)) {}

StreamMark& StreamMark::operator=(StreamMark&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

std::vector<double> to_host(const ConstTensorView& values, Stream stream) {
  SLUICE_CHECK(values.packed() && values.dtype == DType::f64, "to_host() reads packed f64");
  std::vector<double> host(values.numel());
  copy_bytes(host.data(), kCpu, values.data, values.device, host.size() * sizeof(double), stream);
  stream.sync();
  return host;
}

}  // namespace sluice
