// The CUDA side of ssd_forward, as its dispatcher sees it.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/chunk_scan/chunk_scan_cuda.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/chunk_state/chunk_state_cuda.h"

namespace sluice::cuda {

inline constexpr int64_t kWalkTile = 64;  // tokens

// Heads of a block, two or three of a group; into how many runs, which blocks take side by side, a
// row's chunks are cut; and how long all walks take, in tokens of a block with two heads. A round
// is as many blocks as there are multiprocessors.
struct WalkSchedule {
  int64_t heads = 0, runs = 0;
  int64_t chunks = 0;  // of a run
  double time = std::numeric_limits<double>::infinity();
};
inline constexpr int64_t kMostWalkHeads = 3;
inline constexpr int64_t kWalkStart = 128;  // a block's beginning and end, in tokens
inline WalkSchedule walk_schedule(const Dims& x, int64_t G, int64_t chunk) {
  constexpr double kThree = 1.73;  // of a block with three heads
  // Of runs, to find what they begin with: of a token and head, of a run and head, and anyway.
  constexpr double kFold = 1.0 / 620, kRun = 1, kStart = 560;
  const int64_t T = x[1], M = num_chunks(T, chunk), heads = x[0] * x[2];
  WalkSchedule best;
  for (int64_t most = 1; most <= std::min(M, kMultiprocessors); ++most) {
    const int64_t chunks = num_chunks(M, most), runs = num_chunks(M, chunks);
    const double tokens = double(kWalkStart + std::min(T, chunks * chunk));
    const double fold =
        runs > 1 ? double(heads) * (kFold * double(T) + kRun * double(runs)) + kStart : 0;
    for (const int64_t of_block : {2, 3}) {
      const int64_t blocks = x[0] * runs * G * num_chunks(x[2] / G, of_block);
      const double time = fold + (of_block == 3 ? kThree : 1) *
                                     double(num_chunks(blocks, kMultiprocessors)) * tokens;
      if (time < best.time) best = {of_block, runs, chunks, time};
    }
  }
  return best;
}

// Whether walks take chunks of rows of T tokens that tensor cores take. The backward's kernels need
// as many states.
constexpr bool walks_take(int64_t N, int64_t chunk, int64_t T) {
  return N == 128 && (chunk % kWalkTile == 0 || chunk >= T);
}
// Whether walks take the shape, and are worth it: few rows and heads leave the machine empty. By
// shape, dtype and strides: counting runs ask too.
inline bool ssd_forward_fits(const SsdForward& args) {
  const int64_t T = args.x.dim(1), heads = args.x.dim(0) * args.x.dim(2);
  // What states first and chunks then take, for a head and token, and anyway.
  constexpr double kTwoParts = 1 / 113.0, kPartsStart = 850;
  return tensor_cores_take(args.x, args.B, args.chunk) &&
         walks_take(args.B.dim(3), args.chunk, T) &&
         kTwoParts * double(heads * (T + kWalkStart)) + kPartsStart >
             walk_schedule(args.x.dims, args.B.dim(2), args.chunk).time &&
         rows_of_16_bytes(args.x, args.B, args.C, args.initial, args.y, args.final_state);
}
// Whether this machine's device has what a block needs: a copy engine and shared memory.
bool ssd_forward_has_room();
// Where there are runs, args.initial is what each of them begins with: (B * runs, H, P, N).
void ssd_forward(const Context& ctx, const SsdForward& args);

}  // namespace sluice::cuda
