#include "tests/bench/workload.h"

namespace sluice::bench {

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
  buffers_.emplace_back(dims.numel() * size_of(dtype), kCpu);
  return TensorView(buffers_.back().data(), dims, dtype);
}

TensorView Workload::uniform(const Dims& dims, double spread, double mean) {
  const TensorView view = zeros(dims);
  float* const x = view.as<float>();
  uint32_t state = 0x9E3779B9u * uint32_t(buffers_.size());
  for (int64_t i = 0; i < view.numel(); ++i) {
    state = state * 1664525u + 1013904223u;  // Knuth's linear congruence: cheap and good enough
    x[i] = float(mean + spread * (double(state) * 0x1p-31 - 1));
  }
  return view;
}

std::vector<Family> all_families() {
  return {copy_family(),       gemm_family(), norm_family(), gated_norm_family(),
          activation_family(), conv_family(), scan_family(), ssd_family(),
          attention_family(),  moe_family(),  xent_family(), adamw_family(),
          accumulate_family()};
}

}  // namespace sluice::bench
