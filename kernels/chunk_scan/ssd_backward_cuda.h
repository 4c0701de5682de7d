// The CUDA side of ssd_backward, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_scan/chunk_scan_cuda.h"
#include "kernels/chunk_scan/ssd_backward.h"
#include "kernels/chunk_state/chunk_state_cuda.h"

namespace sluice::cuda {

// By shape, dtype and strides: counting runs ask too.
inline bool ssd_backward_fits(const SsdBackward& args) {
  return tensor_cores_take(args.x, args.B, args.chunk) && args.B.dim(3) == 128 &&
         chunk_states_have_mma(args.x, args.B, args.chunk) &&
         rows_of_16_bytes(args.dy, args.x, args.B, args.C, args.incoming, args.dx, args.dB,
                          args.dC);
}
// Whether a block may have the shared memory that it needs, on this machine's device.
bool ssd_backward_has_room();

// Tokens of a block that goes through the states.
inline constexpr int64_t kStatesTile = 128;

// Of the heads of a group, over blocks: of a chunk through pairs, of a tile through states.
struct SsdSplits {
  int64_t pairs = 1, states = 1;
  int64_t tiles = 1;  // of a chunk

  explicit SsdSplits(const SsdBackward& args) {
    const int64_t T = args.x.dim(1), G = args.B.dim(2), heads = args.x.dim(2) / G;
    const int64_t chunk_groups = args.incoming.rows() * G;
    tiles = num_chunks(std::min(args.chunk, T), kStatesTile);
    pairs = head_splits(chunk_groups, heads, kMultiprocessors);
    states = head_splits(chunk_groups * tiles, heads, kMultiprocessors);
  }
  // Else dB and dC are written by the pairs, and the states add to them.
  bool has_parts() const { return pairs > 1 || states > 1; }
};

struct SsdScratch {
  TensorView doutgoing = {};  // (B, M, H, P, N) of x's dtype
  ChunkRuns runs = {};        // if walked side by side: gradients of the states that leave them
  // As allocate_by_chunk: weights of tokens, and dots of x and of dy with what states make of them.
  TensorView leaving = {}, entering = {}, leaving_dots = {}, entering_dots = {};
  TensorView state_dots = {};       // (B, M, H): <doutgoing, incoming>
  ChunkScanPartials partials = {};  // dB, dC only if there are parts: (pairs + states, ...)
};
inline ChunkWalk reverse_walk(const SsdBackward& args, const SsdScratch& scratch) {
  return {.name = "ssd_backward",
          .x = args.dy,
          .B = args.C,
          .weights = scratch.entering,
          .decay = args.decay,
          .chunk = args.chunk,
          .reverse = true};
}

// The weights of tokens come first.
void ssd_backward_weights(const Context& ctx, const SsdBackward& args, const SsdScratch& scratch);
void ssd_backward(const Context& ctx, const SsdBackward& args, const SsdScratch& scratch);

}  // namespace sluice::cuda
