// Attention of any head dim and dtype in f32 arithmetic: the path of everything that the tensor
// cores do not take.
#pragma once

#include "kernels/attention/attention_device.cuh"

namespace sluice::cuda {

template <class T>
void attention_forward_plain(const Context& ctx, const ForwardParams<T>& params);

// params.stats is filled in already.
template <class T>
void attention_backward_plain(const Context& ctx, const BackwardParams<T>& params);

}  // namespace sluice::cuda
