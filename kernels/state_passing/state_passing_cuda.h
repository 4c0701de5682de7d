// The CUDA side of state_passing, as its dispatcher sees it.
#pragma once

#include "kernels/state_passing/state_passing.h"

namespace sluice::cuda {

void state_passing_forward(const Context& ctx, const StatePassingForward& args);

// partial: (B * M * H, state_passing_partials(P * N)) scratch, only if dlog_decay is wanted: a sum
// of each warp.
inline constexpr int kStatePassingThreads = 128;
constexpr int64_t state_passing_partials(int64_t size) {
  return (size + kStatePassingThreads - 1) / kStatePassingThreads * (kStatePassingThreads / 32);
}
void state_passing_backward(const Context& ctx, const StatePassingBackward& args,
                            TensorView partial);

}  // namespace sluice::cuda
