#include "tests/bench/workload.h"

#include <algorithm>

#include "kernels/core/device_memory.h"

namespace sluice::bench {
namespace {

// Tensors reach gigabytes: numbers are made for a block, which is repeated. Its length is prime, so
// that rows of any width differ.
constexpr int64_t kRandomBlock = 1000003;

template <class T>
std::vector<T> random_block(int64_t n, uint32_t seed, double spread, double mean) {
  std::vector<T> block(n);
  uint32_t state = seed;
  for (T& x : block) {
    state = state * 1664525u + 1013904223u;  // Knuth's linear congruence: cheap and good enough
    x = T(float(mean + spread * (double(state) * 0x1p-31 - 1)));
  }
  return block;
}

// The block, which is no longer than the tensor, again and again.
template <class T>
void fill(const TensorView& view, const std::vector<T>& block, Stream stream) {
  uint8_t* const data = static_cast<uint8_t*>(view.data);
  const size_t bytes = view.numel() * sizeof(T);
  size_t done = block.size() * sizeof(T);
  copy_bytes(data, view.device, block.data(), kCpu, done, stream);
  while (done < bytes) {
    const size_t more = std::min(done, bytes - done);
    copy_bytes(data + done, view.device, data, view.device, more, stream);
    done += more;
  }
}

}  // namespace

void Workload::backward(const Context&) {
  throw Error(ExitCode::bug, "the harness asked for a backward that the workload does not have");
}

void Workload::forward_backward(const Context& ctx) {
  forward(ctx);
  backward(ctx);
}

size_t Workload::bytes() const {
  size_t sum = 0;
  for (const Buffer& buffer : buffers_) sum += buffer.bytes();
  return sum;
}

TensorView Workload::zeros(const Dims& dims, DType dtype) {
  buffers_.emplace_back(dims.numel() * size_of(dtype), target_.device);
  return TensorView(buffers_.back().data(), dims, dtype, target_.device);
}

TensorView Workload::random(const Dims& dims, DType dtype, double spread, double mean) {
  const TensorView view = zeros(dims, dtype);
  const int64_t n = std::min(view.numel(), kRandomBlock);
  const uint32_t seed = 0x9E3779B9u * uint32_t(buffers_.size());
  if (dtype == DType::bf16) fill(view, random_block<bf16>(n, seed, spread, mean), target_.stream);
  if (dtype == DType::f32) fill(view, random_block<float>(n, seed, spread, mean), target_.stream);
  return view;
}

}  // namespace sluice::bench
