// ssd_backward on tensor cores, through the states: for a head of a chunk, with the state h before
// it and the gradient d of the state after it, w a token's weight in the latter (the decay to the
// chunk's end times dt) and e the decay from the chunk's beginning:
//
//   v[s] = B[s] d^T:   dx[s] += w[s] v[s],   <d, x[s] B[s]^T> = v[s] . x[s]
//   u[t] = C[t] h^T:   e[t] u[t] . dy[t], which dcum gets
//   dB[s] += w[s] x[s] d,   dC[t] += e[t] dy[t] h, over heads
//
// The floor, at T 16384, H 64, P 64, N 128: x, dy, h, d once each, dx read and written: 805 MB at
// Q 128, 0.27 ms at 3 TB/s (671 MB at 256); 69 GFLOP, half of that. So a block takes 128 tokens,
// keeps their B and C in shared memory and their dB and dC in registers, and walks over heads with
// all of the next head on its way. A warpgroup has 64 of the tokens.
//
// The two halves are one and the same product twice: (x, B, d) and (dy, C, h).
#include "kernels/chunk_scan/ssd_states.cuh"
#include "kernels/device/panel_tile.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTokens = int(kStatesTile);
constexpr int kThreads = kTokens / kWarpgroupRows * kWarpgroup;
constexpr int kP = kHeadDim, kN = 128;
constexpr int kStages = 2;

using Rows = PanelTile<kTokens, kP>;     // x, dy
using Factors = PanelTile<kTokens, kN>;  // B, C
using State = PanelTile<kP, kN>;

struct alignas(1024) Room {
  Bf16 B[kTokens * kN], C[kTokens * kN];
  struct Head {
    Bf16 x[kTokens * kP], dy[kTokens * kP], dx[kTokens * kP];
    Bf16 doutgoing[kP * kN], incoming[kP * kN];
  } heads[kStages];
  float leaving[kStages][kTokens], entering[kStages][kTokens];
  float state_dots[2][kThreads / kWarp];
};

// What a block does.
struct Task {
  int tile, split;
  HeadRange heads;
  int64_t chunk_row;
  ChunkPlace place;
  int first;  // the tile's first token, of the chunk
  int size;   // its tokens

  __device__ static Task of(const StatesBackward& args) {
    BlockIndex index(blockIdx.x);
    const int tile = index.take(args.tiles), split = index.take(args.splits);
    const HeadRange heads(args.in, index.take(args.in.groups), split, args.splits);
    const ChunkPlace place(args.in, index.rest);
    const int first = tile * kTokens;
    return {tile, split, heads, index.rest, place, first, min(kTokens, place.size - first)};
  }
  __device__ int64_t row(int token) const { return place.row0 + first + token; }
};

// One head after the other on its way to shared memory.
struct Copies {
  PanelCopies<kTokens, kP, kThreads> x, dy, dx;
  PanelCopies<kP, kN, kThreads> doutgoing, incoming;
  const float* weights;  // this thread's, if it is one of the first 64
  bool weighs;           // it has weights to copy, not padding

  __device__ Copies(const StatesBackward& args, const Task& task)
      : x(args.in.x.row(task.row(0)), args.in.x.stride),
        dy(args.dy.row(task.row(0)), args.dy.stride),
        dx(args.dx.row(task.row(0)), args.dx.stride),
        doutgoing(args.doutgoing.row(task.chunk_row), kN),
        incoming(args.in.incoming.row(task.chunk_row), kN) {
    const int token = task.first + 4 * (int(threadIdx.x) % 32);
    weighs = token < args.padded;
    weights = (threadIdx.x < 32 ? args.leaving : args.entering) +
              task.chunk_row * args.in.heads * args.padded + (weighs ? token : 0);
  }
  __device__ void copy(const StatesBackward& args, const Task& task, Room& room, int stage,
                       int head) const {
    Room::Head& to = room.heads[stage];
    const int64_t column = int64_t(head) * kP;
    x.copy(to.x, column, task.size);
    dy.copy(to.dy, column, task.size);
    dx.copy(to.dx, column, task.size);
    doutgoing.copy(to.doutgoing, column * kN, kP);
    incoming.copy(to.incoming, column * kN, kP);
    float* const all = threadIdx.x < 32 ? room.leaving[stage] : room.entering[stage];
    if (threadIdx.x < 64)
      copy_async_16(all + 4 * (threadIdx.x % 32), weights + head * args.padded, weighs);
  }
};

// v = factors state^T, sum += (weights rows) state, of the warpgroup's rows from `row` on.
__device__ inline void multiply(Accumulator (&v)[kP / kMmaN], Accumulator (&sum)[kN / kMmaN],
                                int row, const Rows& rows, const Factors& factors,
                                const State& state, const float (&weights)[2]) {
  FragmentA a[kP / kMmaK];
#pragma unroll
  for (int k = 0; k < kP / kMmaK; ++k) {
    a[k] = load_a(rows, row + warpgroup_warp() * kMmaM, k * kMmaK);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 value = unpack_bf16(a[k].words[i]);
      a[k].words[i] = pack_bf16(weights[i % 2] * value.x, weights[i % 2] * value.y);
    }
  }
  if constexpr (kHasWgmma) pin(a);
  begin_sums(v);
  begin_sums(sum);
  multiply_rows(v, factors, row, state);
  add_product<kP, kN>(sum, a, state);
  end_sums();
  wait_sums<0>(v);
  wait_sums<0>(sum);
}

// A token's sum over the four lanes that share it, times `factor`, to `to` + token.
__device__ inline void store_dot(float dot, float factor, float* to, int token, int64_t tokens) {
  dot += __shfl_xor_sync(kFullWarp, dot, 1);
  dot += __shfl_xor_sync(kFullWarp, dot, 2);
  if (threadIdx.x % 4 == 0 && token < tokens) to[token] = dot * factor;
}

// This thread's share of <doutgoing, incoming>: both lie in the same order.
__device__ inline float state_dot(const Room::Head& head) {
  float dot = 0;
#pragma unroll
  for (int i = 0; i < kP * kN / 8 / kThreads; ++i) {
    const int at = (i * kThreads + int(threadIdx.x)) * 8;
    const uint4 a = *reinterpret_cast<const uint4*>(head.doutgoing + at);
    const uint4 b = *reinterpret_cast<const uint4*>(head.incoming + at);
    const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 l = unpack_bf16(left[w]), r = unpack_bf16(right[w]);
      dot += l.x * r.x + l.y * r.y;
    }
  }
  return dot;
}

struct Block {
  const StatesBackward& args;
  const Task& task;
  Room& room;
  int row0 = warpgroup_index() * kWarpgroupRows;  // the warpgroup's, of the tile
  int row = row0 + warpgroup_warp() * kMmaM;      // the warp's
  int64_t dots_end = args.padded - task.first;    // tokens that have dots
  Accumulator dB[kN / kMmaN], dC[kN / kMmaN];

  __device__ int64_t by_chunk(int head) const {
    return (task.chunk_row * args.in.heads + head) * args.padded + task.first;
  }

  // dx, dB and the dots of x.
  __device__ void from_leaving(Room::Head& head, const float* weights, int h) {
    const Rows x{head.x}, dx{head.dx};
    const int token = row + Accumulator::row(0);
    const float w[2] = {weights[token], weights[token + 8]};
    Accumulator v[kP / kMmaN];
    multiply(v, dB, row0, x, {room.B}, {head.doutgoing}, w);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float dot = 0;
#pragma unroll
      for (int n = 0; n < kP / kMmaN; ++n) {
        const int column = n * kMmaN + Accumulator::column(0);
        const float left = v[n].values[2 * half], right = v[n].values[2 * half + 1];
        const float2 value = x.pair(token + 8 * half, column);
        dot += left * value.x + right * value.y;
        Bf16* const to = dx.element(token + 8 * half, column);
        const float2 before = unpack_bf16(*reinterpret_cast<const uint32_t*>(to));
        *reinterpret_cast<uint32_t*>(to) =
            pack_bf16(before.x + w[half] * left, before.y + w[half] * right);
      }
      store_dot(dot, 1, args.leaving_dots + by_chunk(h), token + 8 * half, dots_end);
    }
    __syncwarp();
    const int column = threadIdx.x % 8 * 8;
    Bf16* const to = args.dx.row(task.row(0)) + int64_t(h) * kP + column;
#pragma unroll
    for (int i = 0; i < kMmaM; i += 4) {
      const int r = row + i + threadIdx.x % 32 / 8;
      if (r < task.size) Pack<Bf16>::load(dx.piece(r, column)).store(to + r * args.dx.stride);
    }
  }
  // dC and the dots of dy.
  __device__ void from_entering(const Room::Head& head, const float* weights, int h) {
    const Rows dy{const_cast<Bf16*>(head.dy)};
    const int token = row + Accumulator::row(0);
    const float e[2] = {weights[token], weights[token + 8]};
    Accumulator u[kP / kMmaN];
    multiply(u, dC, row0, dy, {room.C}, {const_cast<Bf16*>(head.incoming)}, e);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float dot = 0;
#pragma unroll
      for (int n = 0; n < kP / kMmaN; ++n) {
        const float2 value = dy.pair(token + 8 * half, n * kMmaN + Accumulator::column(0));
        dot += u[n].values[2 * half] * value.x + u[n].values[2 * half + 1] * value.y;
      }
      store_dot(dot, e[half], args.entering_dots + by_chunk(h), token + 8 * half, dots_end);
    }
  }

  __device__ void write(const Accumulator (&sum)[kN / kMmaN], RowsOf<float> parts,
                        RowsOf<Bf16> whole) const {
    const int64_t column = int64_t(task.heads.group) * kN + Accumulator::column(0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = row + Accumulator::row(2 * half);
      if (token >= task.size) continue;
#pragma unroll
      for (int n = 0; n < kN / kMmaN; ++n) {
        const float left = sum[n].values[2 * half], right = sum[n].values[2 * half + 1];
        if (parts.data != nullptr) {
          float* const to = parts.row(task.split * args.all_tokens + task.row(token)) + column;
          *reinterpret_cast<float2*>(to + n * kMmaN) = make_float2(left, right);
        } else {
          Bf16* const to = whole.row(task.row(token)) + column + n * kMmaN;
          const float2 before = unpack_bf16(*reinterpret_cast<const uint32_t*>(to));
          *reinterpret_cast<uint32_t*>(to) = pack_bf16(before.x + left, before.y + right);
        }
      }
    }
  }
};

// The warps' shares of a head that is done.
__device__ inline void store_state_dot(const StatesBackward& args, const Task& task,
                                       const float (&shares)[kThreads / kWarp], int head) {
  if (task.tile > 0 || threadIdx.x > 0) return;
  float sum = 0;
#pragma unroll
  for (const float share : shares) sum += share;
  args.state_dots[task.chunk_row * args.in.heads + head] = sum;
}

__global__ void __launch_bounds__(kThreads, 1) states_backward_kernel(const StatesBackward args) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const Task task = Task::of(args);
  if (task.size <= 0) return;  // a short chunk has no second tile
  const int64_t factors = int64_t(task.heads.group) * kN;
  using FactorCopies = PanelCopies<kTokens, kN, kThreads>;
  FactorCopies(args.in.B.row(task.row(0)) + factors, args.in.B.stride).copy(room.B, 0, task.size);
  FactorCopies(args.in.C.row(task.row(0)) + factors, args.in.C.stride).copy(room.C, 0, task.size);
  const Copies copies(args, task);
  copies.copy(args, task, room, 0, task.heads.begin);
  commit_copies();
  Block block{args, task, room};
#pragma unroll 1
  for (int head = task.heads.begin; head < task.heads.end; ++head) {
    const int stage = (head - task.heads.begin) % kStages;
    wait_tiles<0>();  // the head has arrived; all are done with the one before
    if (head + 1 < task.heads.end) copies.copy(args, task, room, stage ^ 1, head + 1);
    commit_copies();
    if (head > task.heads.begin) store_state_dot(args, task, room.state_dots[stage ^ 1], head - 1);
    block.from_leaving(room.heads[stage], room.leaving[stage], head);
    block.from_entering(room.heads[stage], room.entering[stage], head);
    if (task.tile > 0) continue;
    const float dot = warp_sum(state_dot(room.heads[stage]));
    if (threadIdx.x % kWarp == 0) room.state_dots[stage][threadIdx.x / kWarp] = dot;
  }
  __syncthreads();
  store_state_dot(args, task, room.state_dots[(task.heads.end - 1 - task.heads.begin) % kStages],
                  task.heads.end - 1);
  block.write(block.dB, args.part_dB, args.dB);
  block.write(block.dC, args.part_dC, args.dC);
}

}  // namespace

bool ssd_backward_has_room() { return has_shared_bytes(sizeof(Room)); }

void states_backward(const Context& ctx, const StatesBackward& args) {
  launch(
      ctx, "ssd_backward",
      {.blocks = unsigned(int64_t(args.in.chunk_rows) * args.in.groups * args.splits * args.tiles),
       .threads = kThreads,
       .shared_bytes = sizeof(Room)},
      states_backward_kernel, args);
}

}  // namespace sluice::cuda
