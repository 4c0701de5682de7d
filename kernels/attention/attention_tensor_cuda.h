// Attention on tensor cores: bf16, head dims up to 128 that 8 divides.
#pragma once

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_device.cuh"

namespace sluice::cuda {

// A negative scale would turn the order of the scores, whose largest is taken before scaling.
inline bool takes_tensor_cores(const AttentionSizes& sizes, float scale) {
  return on_tensor_cores(sizes.hd) && scale > 0;
}
// Copies and stores are of 16 bytes.
template <class Element>
bool takes_16_bytes(const HeadRows<Element>& rows) {
  return rows.stride % 8 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}
inline bool takes_tensor_cores(const ForwardParams<Bf16>& p) {
  return takes_tensor_cores(p.sizes, p.scale) && takes_16_bytes(p.q) && takes_16_bytes(p.k) &&
         takes_16_bytes(p.v) && takes_16_bytes(p.y);
}
inline bool takes_tensor_cores(const BackwardParams<Bf16>& p) {
  return takes_tensor_cores(p.sizes, p.scale) && takes_16_bytes(p.dy) && takes_16_bytes(p.q) &&
         takes_16_bytes(p.k) && takes_16_bytes(p.v) && takes_16_bytes(p.dq) &&
         takes_16_bytes(p.dk) && takes_16_bytes(p.dv);
}

void attention_forward_tensor(const Context& ctx, const ForwardParams<Bf16>& params);

// params.stats is filled in already.
void attention_backward_dkv_tensor(const Context& ctx, const BackwardParams<Bf16>& params);
void attention_backward_dq_tensor(const Context& ctx, const BackwardParams<Bf16>& params);

}  // namespace sluice::cuda
