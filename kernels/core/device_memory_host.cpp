// A build without CUDA: the host is the only device.
#include "kernels/core/device_memory.h"

#include <cstring>

#include "kernels/core/error.h"
#include "kernels/core/host_memory.h"

namespace sluice {

namespace {

void require_host(Device device) {
  if (!device.is_cpu()) {
    throw UsageError("this build has no CUDA: set device: cpu, or build with SLUICE_WITH_CUDA=ON");
  }
}

}  // namespace

int num_cuda_devices() { return 0; }

std::string why_no_cuda_device() {
  return "this build has no CUDA: build with SLUICE_WITH_CUDA=ON";
}

std::string cuda_version() { return "none"; }

size_t memory_of(Device device) {
  require_host(device);
  return host_memory_bytes();
}

size_t free_memory_of(Device device) { return memory_of(device); }

void* allocate_bytes(size_t bytes, Device device) {
  if (bytes == 0) return nullptr;  // of a plan for a GPU
  require_host(device);
  return allocate_host_bytes(bytes);
}

void free_bytes(void* data, Device) noexcept { free_host_bytes(data); }

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
                Stream) {
  require_host(to_device), require_host(from_device);
  if (bytes > 0) std::memmove(to, from, bytes);
}

void zero_bytes(void* data, Device device, size_t bytes, Stream) {
  require_host(device);
  if (bytes > 0) std::memset(data, 0, bytes);
}

Stream make_stream(Device device) {
  require_host(device);
  return {};
}

void destroy_stream(Stream) noexcept {}

void Stream::sync() const {}

PinnedBuffer::PinnedBuffer(size_t) {
  throw Error(ExitCode::bug, "pinned memory is for copies to GPUs");
}

PinnedBuffer::~PinnedBuffer() = default;

StreamMark::~StreamMark() = default;

void StreamMark::record(Stream) {}

void StreamMark::order(Stream) const {}

void StreamMark::wait() const {}

DeviceGraph::~DeviceGraph() = default;

void DeviceGraph::capture(Stream, const std::function<void()>&) {
  throw Error(ExitCode::bug, "graphs are of GPUs");
}

void DeviceGraph::launch(Stream) const { throw Error(ExitCode::bug, "graphs are of GPUs"); }

}  // namespace sluice
