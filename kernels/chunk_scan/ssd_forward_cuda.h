// The CUDA side of ssd_forward, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_scan/chunk_scan_cuda.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/chunk_state/chunk_state_cuda.h"

namespace sluice::cuda {

inline constexpr int64_t kWalkTile = 64;  // tokens
inline constexpr int64_t kWalkHeads = 2;  // of a block

// Whether one walk takes the shape, and is worth it: a block walks a row with two of its heads, so
// few rows and heads leave the machine empty. By shape, dtype and strides: counting runs ask too.
inline bool ssd_forward_fits(const SsdForward& args) {
  const int64_t T = args.x.dim(1), H = args.x.dim(2), G = args.B.dim(2);
  const int64_t blocks = args.x.dim(0) * H / kWalkHeads;
  const int64_t rounds = num_chunks(blocks, kMultiprocessors);
  constexpr int64_t kEnough = 93;  // blocks of a round, where the walk is as fast as the two parts
  return tensor_cores_take(args.x, args.B, args.chunk) && args.B.dim(3) == 128 &&
         (args.chunk % kWalkTile == 0 || args.chunk >= T) && H / G % kWalkHeads == 0 &&
         blocks > rounds * kEnough &&
         rows_of_16_bytes(args.x, args.B, args.C, args.initial, args.y, args.final_state);
}
// Whether a block may have the shared memory that it needs, on this machine's device.
bool ssd_forward_has_room();
void ssd_forward(const Context& ctx, const SsdForward& args);

}  // namespace sluice::cuda
