// The CUDA side of chunk_scan, as its dispatcher sees it.
#pragma once

#include <limits>

#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/core/chunks.h"

namespace sluice::cuda {

void chunk_scan_forward(const Context& ctx, const ChunkScanForward& args);

// Tokens by which the plain backward cuts a chunk.
inline constexpr int64_t kScanTile = 64;
// What grids are cut for. Bits depend on it, through the order of sums over heads, on every device.
inline constexpr int64_t kMultiprocessors = 132;

// Whether tensor cores have kernels for the shape. (They also want rows aligned to 16 bytes.)
constexpr bool tensor_cores_take(DType dtype, int64_t P, int64_t N, int64_t chunk) {
  return dtype == DType::bf16 && P == 64 && (N == 64 || N == 128) && chunk <= 256;
}
inline bool tensor_cores_take(const ConstTensorView& x, const ConstTensorView& B, int64_t chunk) {
  return tensor_cores_take(x.dtype, x.dim(3), B.dim(3), chunk);
}

// Blocks of chunk_scan's kernels that the machine runs at once.
inline int64_t scan_blocks_at_once(int64_t chunk) {
  return kMultiprocessors * (chunk > 128 ? 1 : 2);
}

// Into how many blocks the heads of a chunk's group are split on tensor cores, so that the blocks
// fill the machine as evenly as may be.
inline int64_t head_splits(int64_t chunk_groups, int64_t group_heads, int64_t at_once) {
  constexpr double kStart = 2;  // a block's beginning and end, in heads
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t splits = 1; splits <= group_heads; ++splits) {
    const double rounds = double(num_chunks(chunk_groups * splits, at_once));
    const double cost = rounds * (double(num_chunks(group_heads, splits)) + kStart);
    if (cost < least) best = splits, least = cost;
  }
  return best;
}

// Partial sums of the backward, in scratch, f32.
struct ChunkScanPartials {
  // (one row for every kScanTile tokens of every chunk, H); tensor cores need one a chunk
  TensorView dD = {};
  // On tensor cores:
  TensorView dB = {};  // (splits, B * T, G * N)
  TensorView dC = {};  // (2 * splits, B * T, G * N): from pairs, then from incoming states
};
void chunk_scan_backward(const Context& ctx, const ChunkScanBackward& args,
                         const ChunkScanPartials& partials);

}  // namespace sluice::cuda
