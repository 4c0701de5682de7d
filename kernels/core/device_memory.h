// What the host asks of a device: memory, copies, streams. A build without CUDA has the host alone
// (device_memory_host.cpp); one with it chooses device_memory_cuda.cpp.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"

namespace sluice {

// 0 in a build without CUDA, or on a machine without a GPU that this build can use.
int num_cuda_devices();
// Why there is none, and what to do.
std::string why_no_cuda_device();

// What the build has: "13.0 (sm_80, sm_90a)", or "none".
std::string cuda_version();
// Bytes of a GPU's memory, or of the host's.
size_t memory_of(Device device);
// What nobody has allocated of a GPU's memory; of the host, all of it.
size_t free_memory_of(Device device);

// Null for no bytes; else zero-filled, aligned to at least 256 bytes. Throws IoError naming the
// size and what to lower.
void* allocate_bytes(size_t bytes, Device device);
void free_bytes(void* data, Device device) noexcept;

// Enqueued on the stream. Where one side is pageable host memory the call returns when that memory
// may be used again.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
                Stream stream);
void zero_bytes(void* data, Device device, size_t bytes, Stream stream);

// The elements of a packed f64 tensor, wherever it lies; waits for the stream.
std::vector<double> to_host(const ConstTensorView& values, Stream stream);

// On the host a stream is nothing.
Stream make_stream(Device device);
void destroy_stream(Stream stream) noexcept;

// Host memory from which a GPU copies by itself, while the host goes on.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;

  char* data() const { return static_cast<char*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A point in the work of a stream. One that was never recorded is behind everything.
class StreamMark {
 public:
  StreamMark() = default;
  ~StreamMark();
  StreamMark(StreamMark&& other) noexcept;
  StreamMark& operator=(StreamMark&& other) noexcept;

  void record(Stream stream);
  // What `stream` is given from now on waits for the mark; so does the host.
  void order(Stream stream) const;
  void wait() const;

 private:
  void* handle_ = nullptr;
};

// Work that was recorded once and is launched as a whole. Of GPUs only.
class DeviceGraph {
 public:
  DeviceGraph() = default;
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  bool captured() const { return handle_ != nullptr; }
  // Records what `enqueue` gives to the stream, without running it.
  void capture(Stream stream, const std::function<void()>& enqueue);
  void launch(Stream stream) const;

 private:
  void* handle_ = nullptr;
};

class OwnedStream {
 public:
  explicit OwnedStream(Device device) : stream_(make_stream(device)) {}
  ~OwnedStream() { destroy_stream(stream_); }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;

  operator Stream() const { return stream_; }

 private:
  Stream stream_;
};

}  // namespace sluice
