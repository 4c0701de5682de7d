// The CUDA side of rope, as its dispatcher sees it.
#pragma once

#include "kernels/core/packs.h"
#include "kernels/rope/rope.h"

namespace sluice::cuda {

// Whether heads are rotated 16 bytes at a time. (They must be aligned, too.)
inline bool rope_in_packs(DType dtype, int64_t head_dim, int64_t rotary_dims) {
  return whole_packs({head_dim, rotary_dims / 2}, dtype);
}

// direction: 1 forward, -1 backward.
void rope(const Context& ctx, const Rope& args, int direction);

}  // namespace sluice::cuda
