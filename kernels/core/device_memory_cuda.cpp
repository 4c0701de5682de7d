// A build with CUDA: the host and any number of GPUs.
#include "kernels/core/cuda_check.h"
#include "kernels/core/cuda_state.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/host_memory.h"

#include <cstring>

namespace sluice {

namespace {

cudaStream_t handle_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

void use(Device device) { CUDA_CHECK(cudaSetDevice(device.index)); }

}  // namespace

// A machine without a driver has none, which is no error.
int num_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string why_no_cuda_device() {
  int count = 0;
  CudaState state{.build = CUDART_VERSION};
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (cudaDriverGetVersion(&state.driver) != cudaSuccess) state.driver = 0;
  state.driver_is_old = status == cudaErrorInsufficientDriver;
  if (status != cudaSuccess && status != cudaErrorNoDevice)
    state.error = cudaGetErrorString(status);
  return why_no_cuda_device(state);
}

std::string cuda_version() {
  return concat(CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10, " (",
                SLUICE_CUDA_ARCHITECTURES, ")");
}

size_t memory_of(Device device) {
  if (device.is_cpu()) return host_memory_bytes();
  use(device);
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return total;
}

size_t free_memory_of(Device device) {
  if (device.is_cpu()) return host_memory_bytes();
  use(device);
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void* allocate_bytes(size_t bytes, Device device) {
  if (device.is_cpu()) return allocate_host_bytes(bytes);
  if (bytes == 0) return nullptr;
  use(device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // told here, and not by the next launch
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    throw IoError(concat("cannot allocate ", bytes, " bytes on GPU ", int(device.index), ": ", free,
                         " of ", total,
                         " are free; lower train.micro_batch or set train.recompute: full"));
  }
  CUDA_CHECK(status);
  CUDA_CHECK(cudaMemset(data, 0, bytes));
  CUDA_CHECK(cudaStreamSynchronize(cudaStreamLegacy));  // streams of ours do not wait for that one
  return data;
}

// What has gone wrong on the device before was or will be thrown elsewhere.
void free_bytes(void* data, Device device) noexcept {
  if (device.is_cpu()) return free_host_bytes(data);
  if (data != nullptr) cudaFree(data);
}

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
                Stream stream) {
  if (bytes == 0) return;
  if (to_device.is_cpu() && from_device.is_cpu()) {
    std::memmove(to, from, bytes);
    return;
  }
  CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle_of(stream)));
}

void zero_bytes(void* data, Device device, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (device.is_cpu()) {
    std::memset(data, 0, bytes);
    return;
  }
  CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, handle_of(stream)));
}

Stream make_stream(Device device) {
  if (device.is_cpu()) return {};
  use(device);
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return {stream};
}

void destroy_stream(Stream stream) noexcept {
  if (stream.handle != nullptr) cudaStreamDestroy(handle_of(stream));
}

PinnedBuffer::PinnedBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes > 0) CUDA_CHECK(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

void StreamMark::record(Stream stream) {
  cudaEvent_t event = static_cast<cudaEvent_t>(handle_);
  if (event == nullptr) CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  handle_ = event;
  CUDA_CHECK(cudaEventRecord(event, handle_of(stream)));
}

void StreamMark::order(Stream stream) const {
  if (handle_ != nullptr)
    CUDA_CHECK(cudaStreamWaitEvent(handle_of(stream), static_cast<cudaEvent_t>(handle_), 0));
}

void StreamMark::wait() const {
  if (handle_ != nullptr) CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)));
}

StreamMark::~StreamMark() {
  if (handle_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}

DeviceGraph::~DeviceGraph() {
  if (handle_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

void DeviceGraph::capture(Stream stream, const std::function<void()>& enqueue) {
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(handle_of(stream), cudaStreamCaptureModeThreadLocal));
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(handle_of(stream), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(handle_of(stream), &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_CHECK(status);
  handle_ = exec;
}

void DeviceGraph::launch(Stream stream) const {
  CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), handle_of(stream)));
}

// A kernel that went wrong is told of here, by whoever waits, not where it was started.
void Stream::sync() const {
  if (handle == nullptr) return;
  const cudaError_t status = cudaStreamSynchronize(static_cast<cudaStream_t>(handle));
  if (status == cudaSuccess) return;
  throw Error(ExitCode::bug,
              concat("CUDA: ", cudaGetErrorString(status), " in a kernel started before; with ",
                     "CUDA_LAUNCH_BLOCKING=1 and train.graph=false the error names the operator"));
}

}  // namespace sluice
