#include "kernels/core/cuda_check.h"
#include "tests/bench/gpu.h"

namespace sluice::bench {
namespace {

cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }

}  // namespace

Marks::Marks(int64_t count) : events_(count) {
  for (void*& handle : events_) {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreate(&event));
    handle = event;
  }
}

Marks::~Marks() {
  for (void* const handle : events_) cudaEventDestroy(event_of(handle));
}

void Marks::record(int64_t index, Stream stream) {
  CUDA_CHECK(cudaEventRecord(event_of(events_[index]), static_cast<cudaStream_t>(stream.handle)));
}

double Marks::ms_after(int64_t index) const {
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, event_of(events_[index]), event_of(events_[index + 1])));
  return ms;
}

size_t gpu_cache_bytes(Device device) {
  int bytes = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device.index));
  return size_t(bytes);
}

}  // namespace sluice::bench
