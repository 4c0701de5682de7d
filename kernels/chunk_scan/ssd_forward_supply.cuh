// What supplies ssd_forward's walks: the stages of shared memory, tiles on their way there by the
// copy engine, and the weights of their tokens.
#pragma once

#include "kernels/chunk_scan/chunk_scan_tensor.cuh"
#include "kernels/chunk_scan/ssd_forward_cuda.h"
#include "kernels/device/copy_engine.cuh"
#include "kernels/device/panel_tile.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/warp_roles.cuh"

namespace sluice::cuda {
namespace ssd_walk {

constexpr int kTile = int(kWalkTile);
constexpr int kP = kHeadDim, kN = 128;
constexpr int kStages = 3;
constexpr int kWarps = kWarpgroup / kWarp;

using Factors = PanelTile<kTile, kN>;  // B, C
using Tokens = PanelTile<kTile, kP>;   // x, y
using State = PanelTile<kP, kN>;

// Of a head's tokens. (Those beyond the row's end have the last one's.)
struct alignas(16) Weights {
  float cum[kTile];       // in powers of 2
  float source[kTile];    // cum - log2 dt: exp2(cum[t] - source[s]) = exp(cum[t] - cum[s]) dt[s]
  float entering[kTile];  // e, 0 where the state is not seen
  float leaving[kTile];   // w, 0 where the end is not reached
  float decay;
};

template <int kHeads>
struct alignas(1024) Room {
  struct Stage {
    Bf16 B[kTile * kN], C[kTile * kN];
    Bf16 x[kHeads][kTile * kP];  // becomes y
  } stages[kStages];
  Bf16 state[kHeads][kP * kN];
  Weights weights[kHeads][kStages];
  int first[kStages][kTile];  // the first token of the tile that a token sees, -1: the state too
  // Every lane arrives, for what it has itself written or read. One of a warp after __syncwarp()
  // would do, and is 9 % faster where a block has three heads, but racecheck does not see that.
  SharedBarrier filled[kStages], emptied[kStages];
};

struct Arrays {
  CUtensorMap x, B, C;  // (batch, tokens, columns)
  ScanInputs<Bf16> in;  // without incoming states
  RowsOf<Bf16> y;
  RowsOf<const float> initial;  // of each run; data may be null
  RowsOf<float> final_state;    // of rows, if they are one run; data may be null
  int64_t run;                  // tokens of a run
  int64_t runs;                 // of a row
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// What a block does.
struct Task {
  int64_t b, row_run;      // the row, its run among those of all rows
  int64_t begin, end;      // tokens
  int group, head, heads;  // its group's number, its first head, how many it has

  template <int kHeads>
  __device__ static Task of(const Arrays& args) {
    const ScanInputs<Bf16>& in = args.in;
    BlockIndex index(blockIdx.x);
    const int of_group = in.group_heads();
    const int first = index.take((of_group + kHeads - 1) / kHeads) * kHeads;
    const int group = index.take(in.groups);
    const int64_t row_run = index.rest, begin = index.take(args.runs) * args.run;
    return {.b = index.rest,
            .row_run = row_run,
            .begin = begin,
            .end = min(in.tokens, begin + args.run),
            .group = group,
            .head = group * of_group + first,
            .heads = min(kHeads, of_group - first)};
  }
};

// The i-th of this lane's two tokens of the tile that begins at `begin`, or the row's last.
__device__ inline int64_t lane_token(const ScanInputs<Bf16>& in, int64_t begin, int i) {
  return min(begin + 2 * int(threadIdx.x % kWarp) + i, in.tokens - 1);
}
// The first token of the tile that a token of row b sees, -1: the state before it too.
__device__ inline int first_seen(const ScanInputs<Bf16>& in, int64_t b, int64_t token,
                                 int64_t begin) {
  return int(max(int64_t(-1), in.doc_begin.row(b)[token] - begin));
}

// Two tokens of a head, on their way to weights.
struct TokenPair {
  float cum[2], dt[2];
  float before;  // cum of the token before the tile, 0 where a chunk begins
  int first[2];

  __device__ TokenPair(const ScanInputs<Bf16>& in, int64_t b, int head, int64_t begin,
                       bool begins_chunk) {
    const int64_t row0 = b * in.tokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t token = lane_token(in, begin, i);
      cum[i] = in.cum.row(row0 + token)[head] * kLog2e;
      dt[i] = in.dt.row(row0 + token)[head];
      first[i] = first_seen(in, b, token, begin);
    }
    before = begins_chunk ? 0.0f : in.cum.row(row0 + begin - 1)[head] * kLog2e;
  }
  // All lanes of a warp, which have all tokens of the tile.
  __device__ void store(Weights& to) const {
    const float end = __shfl_sync(kFullWarp, cum[1], kWarp - 1);
    const int last_first = __shfl_sync(kFullWarp, first[1], kWarp - 1);
    const int t = 2 * int(threadIdx.x % kWarp);
    float source[2], entering[2], leaving[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      source[i] = cum[i] - log2f(dt[i]);
      entering[i] = first[i] < 0 ? exp2_approx(cum[i] - before) : 0.0f;
      leaving[i] = t + i >= last_first ? exp2_approx(end - cum[i]) * dt[i] : 0.0f;
    }
    *reinterpret_cast<float2*>(to.cum + t) = make_float2(cum[0], cum[1]);
    *reinterpret_cast<float2*>(to.source + t) = make_float2(source[0], source[1]);
    *reinterpret_cast<float2*>(to.entering + t) = make_float2(entering[0], entering[1]);
    *reinterpret_cast<float2*>(to.leaving + t) = make_float2(leaving[0], leaving[1]);
    if (t == 0) to.decay = last_first < 0 ? exp2_approx(end - before) : 0.0f;
  }
};

// The warps that fill stages: one for the weights of each head, the last for tiles.
template <int kHeads>
struct Supplier {
  static_assert(kHeads < kWarps);
  const Arrays& args;
  const Task& task;
  Room<kHeads>& room;

  __device__ void run() const {
    const int warp = warpgroup_warp();
    if (warp < task.heads) give_weights(warp);
    if (warp == kWarps - 1) give_tiles();
  }
  __device__ void give_weights(int h) const {
    RingCursor<kStages> cursor;
    int64_t chunk = task.begin;  // where the next one begins
#pragma unroll 1
    for (int64_t begin = task.begin; begin < task.end; begin += kTile) {
      const TokenPair tokens(args.in, task.b, task.head + h, begin, begin == chunk);
      if (begin == chunk) chunk += args.in.chunk;
      room.emptied[cursor.stage].wait(cursor.parity ^ 1);
      tokens.store(room.weights[h][cursor.stage]);
      room.filled[cursor.stage].arrive();
      cursor.advance();
    }
  }
  __device__ void give_tiles() const {
    const int lane = threadIdx.x % kWarp;
    RingCursor<kStages> cursor;
#pragma unroll 1
    for (int64_t begin = task.begin; begin < task.end; begin += kTile) {
      int first[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        first[i] = first_seen(args.in, task.b, lane_token(args.in, begin, i), begin);
      room.emptied[cursor.stage].wait(cursor.parity ^ 1);
      reinterpret_cast<int2*>(room.first[cursor.stage])[lane] = make_int2(first[0], first[1]);
      if (lane == 0)
        copy(room.stages[cursor.stage], room.filled[cursor.stage], int(begin));
      else
        room.filled[cursor.stage].arrive();
      cursor.advance();
    }
  }
  // Zeros beyond the row's end.
  __device__ void copy(typename Room<kHeads>::Stage& to, SharedBarrier& filled, int begin) const {
    const int b = int(task.b);
    filled.arrive_expecting(int(sizeof(to.B) + sizeof(to.C)) + task.heads * int(sizeof(to.x[0])));
#pragma unroll
    for (int panel = 0; panel < kN / 64; ++panel) {
      const int column = task.group * kN + panel * 64;
      copy_box(to.B + panel * Factors::kPanel, args.B, filled, column, begin, b);
      copy_box(to.C + panel * Factors::kPanel, args.C, filled, column, begin, b);
    }
    for (int h = 0; h < task.heads; ++h)
      copy_box(to.x[h], args.x, filled, (task.head + h) * kP, begin, b);
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace ssd_walk
}  // namespace sluice::cuda
