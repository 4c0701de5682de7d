// The CUDA side of chunk_state, as its dispatchers see it.
#pragma once

#include <algorithm>

#include "kernels/chunk_state/chunk_state.h"
#include "kernels/chunk_state/entering_states.h"
#include "kernels/core/chunks.h"
#include "kernels/core/packs.h"

namespace sluice::cuda {

// Whether a shape has tensor-core paths. By shape and dtype alone: counting runs ask too.
constexpr bool chunk_states_have_mma(DType dtype, int64_t P, int64_t N, int64_t chunk) {
  return dtype == DType::bf16 && P % 64 == 0 && N % 64 == 0 && chunk >= 16;
}
inline bool chunk_states_have_mma(const ConstTensorView& x, const ConstTensorView& B,
                                  int64_t chunk) {
  return chunk_states_have_mma(x.dtype, x.dim(3), B.dim(3), chunk);
}
// Whether rows of these tensors can be copied 16 bytes at a time.
template <class... Views>
bool rows_of_16_bytes(const Views&... views) {
  return (aligned_rows(views) && ...);
}
inline bool entering_states_fit(const EnteringStates& args) {
  return chunk_states_have_mma(args.x, args.B, args.chunk) &&
         rows_of_16_bytes(args.x, args.B, args.incoming, args.final_state);
}
inline bool chunk_state_backward_has_mma(const ChunkStateBackward& args) {
  return chunk_states_have_mma(args.x, args.B, args.chunk) && args.x.dim(3) == 64 &&
         args.B.dim(3) == 128;
}

// One number a token, in the order in which tensor-core paths read it: (B * M, H * tokens) f32, a
// head's tokens side by side and padded to tiles.
constexpr int64_t padded_chunk(int64_t chunk, int64_t T) {
  return (std::min(chunk, T) + 63) / 64 * 64;
}
inline TensorView allocate_by_chunk(const Context& ctx, const Dims& x, int64_t chunk) {
  return ctx.scratch->alloc({x[0] * num_chunks(x[1], chunk), x[2] * padded_chunk(chunk, x[1])},
                            DType::f32);
}

// Of the backward's tensor-core path; without dims where the shape has none.
struct ChunkStateScratch {
  TensorView weights, dots;  // as allocate_by_chunk
  TensorView dB;             // (splits, B * T, G * N) f32: of each split of a group's heads
};

// A tile is kChunkStateTokens of a chunk; a block takes a tile, a group and a split of its heads.
inline constexpr int64_t kChunkStateTokens = 128;
struct ChunkStateTiles {
  int64_t per_chunk = 0;
  int64_t count = 0;   // B * M * per_chunk
  int64_t splits = 0;  // of the heads of a group, so that small batches fill the machine
};
inline ChunkStateTiles chunk_state_tiles(const Dims& x, int64_t G, int64_t chunk) {
  const int64_t T = x[1];
  const int64_t per_chunk = (std::min(chunk, T) + kChunkStateTokens - 1) / kChunkStateTokens;
  const int64_t count = x[0] * num_chunks(T, chunk) * per_chunk;
  constexpr int64_t kBlocks = 120;  // about one a multiprocessor of an H100
  const int64_t splits = (kBlocks + count * G - 1) / (count * G);
  return {per_chunk, count, std::min(splits, x[2] / G)};
}

// A row's chunks in runs that tensor cores take side by side.
struct ChunkRuns {
  TensorView state = {};  // (B, runs, H, P, N) f32
  TensorView decay = {};  // (B, runs, H)
  int64_t chunks = 0;     // of a run; the last may be shorter
};
// How a walk over chunks cuts rows of these: in so many runs that the blocks of all heads fill the
// machine, two of 64 x 128 of a state a multiprocessor.
struct RunSchedule {
  int64_t chunks = 0, count = 0;
  bool gains = false;  // by runs side by side, though all are folded first to find how they begin

  RunSchedule(const Dims& x, int64_t N, int64_t chunk) {
    constexpr int64_t kBlocks = 2 * 132;  // of an H100, at once
    // Few blocks take as long for a tile of 64 tokens as 60 would for theirs twice if many ran side
    // by side; and the two kernels more take as long to start as those for 2000 tokens.
    constexpr double kFew = 60, kStart = 2000;
    const int64_t M = num_chunks(x[1], chunk);
    const int64_t blocks = x[0] * x[2] * (x[3] / 64) * num_chunks(N, 128);
    chunks = num_chunks(M, std::clamp<int64_t>(kBlocks / blocks, 1, M));
    count = num_chunks(M, chunks);
    gains = count > 1 && double(x[1]) * (1 - double(blocks) / kFew) > kStart;
  }
};
inline ChunkRuns allocate_runs(const Context& ctx, const Dims& x, int64_t N, int64_t chunk,
                               int64_t chunks) {
  const int64_t runs = num_chunks(num_chunks(x[1], chunk), chunks);
  return {.state = ctx.scratch->alloc({x[0], runs, x[2], x[3], N}, DType::f32),
          .decay = ctx.scratch->alloc({x[0], runs, x[2]}, DType::f32),
          .chunks = chunks};
}

void chunk_state_forward(const Context& ctx, const ChunkStateForward& args);
// scratch: see above.
void chunk_state_backward(const Context& ctx, const ChunkStateBackward& args,
                          const ChunkStateScratch& scratch);

// Tensor-core paths, and whether they take what is given.
void write_leaving_weights(const Context& ctx, const EnteringStates& args, TensorView weights);
bool chunk_state_backward_fits(const ChunkStateBackward& args);
void chunk_state_backward_mma(const Context& ctx, const ChunkStateBackward& args,
                              const ChunkStateScratch& scratch);

// A walk over a row's chunks, for shapes that chunk_states_have_mma, and rows of 16 bytes. Forward,
// over x and B with the leaving weights, it carries states; in reverse, over dy and C with the
// entering weights, their gradients, from the row's end: what chunk_scan_backward finds for
// incoming states is then never written.
struct ChunkWalk {
  const char* name = "";         // of the operator
  ConstTensorView x = {};        // (B, T, H, P): x, or dy
  ConstTensorView B = {};        // (B, T, G, N): B, or C
  ConstTensorView weights = {};  // of chunk_weights_kernel
  ConstTensorView decay = {};    // (B, M, H)
  int64_t chunk = 0;
  bool reverse = false;
  // (B, M, H, P, N) bf16: what is carried to each chunk. Without it runs are folded: each begins
  // with zeros, and leaves in `runs` what it ends with and its decay.
  TensorView carried = {};
  ChunkRuns runs = {};         // with `carried`: what runs begin with. Absent: the row is one
  ConstTensorView begin = {};  // (B, H, P, N): then what it begins with, optional
  TensorView end = {};         // and what it ends with, optional
};
void walk_chunks_mma(const Context& ctx, const ChunkWalk& args);

// What runs of so many chunks begin with, as `state`, in scratch. args is without `incoming`, and
// with `decay`, which is written; for entering_states_fit.
ChunkRuns entering_runs(const Context& ctx, const EnteringStates& args, int64_t chunks);

}  // namespace sluice::cuda
