// The CUDA side of ssd_forward, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_scan/chunk_scan_cuda.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/chunk_state/chunk_state_cuda.h"

namespace sluice::cuda {

inline constexpr int64_t kWalkTile = 64;  // tokens

// Heads of a block, two or three of a group, and how long all walks take, in the time of two
// heads' walk. A round is as many blocks as there are multiprocessors.
struct WalkSchedule {
  int64_t heads = 0;
  double rounds = 0;
};
inline constexpr int64_t kMostWalkHeads = 3;
constexpr WalkSchedule walk_schedule(int64_t batch, int64_t H, int64_t G) {
  constexpr double kThree = 1.57;  // of a block with three heads
  const auto rounds = [&](int64_t heads) {
    return double(num_chunks(batch * G * num_chunks(H / G, heads), kMultiprocessors));
  };
  const double of_two = rounds(2), of_three = kThree * rounds(3);
  return of_two <= of_three ? WalkSchedule{2, of_two} : WalkSchedule{3, of_three};
}

// Whether walks take the shape, and are worth it: few rows and heads leave the machine empty. By
// shape, dtype and strides: counting runs ask too.
inline bool ssd_forward_fits(const SsdForward& args) {
  const int64_t T = args.x.dim(1), H = args.x.dim(2), G = args.B.dim(2), batch = args.x.dim(0);
  constexpr int64_t kEnough = 113;  // heads of a round, where walks are as fast as the two parts
  return tensor_cores_take(args.x, args.B, args.chunk) && args.B.dim(3) == 128 &&
         (args.chunk % kWalkTile == 0 || args.chunk >= T) &&
         double(batch * H) > kEnough * walk_schedule(batch, H, G).rounds &&
         rows_of_16_bytes(args.x, args.B, args.C, args.initial, args.y, args.final_state);
}
// Whether this machine's device has what a block needs: a copy engine and shared memory.
bool ssd_forward_has_room();
void ssd_forward(const Context& ctx, const SsdForward& args);

}  // namespace sluice::cuda
