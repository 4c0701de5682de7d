// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
//
// The backward of chunk_state in bf16 on tensor cores, for P = 64 and N = 128.
//
// Floor: bytes. dstate (f32, 4 B M H P N) and x are read, dx is read and written: at T = 16384,
// H = 64 and chunks of 256 tokens 0.54 GB, 0.18 ms; 0.22 ms with chunks of 128. The 4 T H P N = 34
// GFLOP take half of that.
//
// A block takes 128 tokens of a chunk and a group's heads (or a split of them) one after the other:
//   V = B dstate^T (tokens x P):   dx += w V,   <dstate, x B^T> = V . x
//   dB += (w x) dstate (tokens x N), in registers over all heads
// so that dB is written once and dstate, rounded to bf16 on its way to shared memory, serves both
// products. A warp owns 16 tokens; what belongs to a token (decay, dt, ddt, dcum) lies in the
// registers of the first two lanes of the four that share its rows. One barrier a head: while a
// head is worked on, the next one's dstate is on its way to registers and x and dx of the next two
// to shared memory.
#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTokens = int(kChunkStateTokens);
constexpr int kWarps = int(kChunkStateWarps);
constexpr int kThreads = kWarps * kWarp;
constexpr int kP = 64, kN = 128;
constexpr int kStages = 3;
static_assert(kTokens == kWarps * kMmaM, "a warp owns 16 tokens");

struct alignas(128) Room {
  Bf16 B[kTokens * kN];
  Bf16 dstate[2][kP * kN];
  Bf16 x[kStages][kTokens * kP];
  Bf16 dx[kStages][kTokens * kP];
};

struct Partials {
  float* dB;           // (splits, B * T, G * N), or null: dB itself is added to
  float* shares;       // (tiles * warps, H)
  int64_t split_size;  // B * T * G * N
  ChunkStateTiles tiles;
};

// What a block does. Rows are counted over the batch.
struct Task {
  int64_t chunk_row, g, split, tile;
  int64_t first_head, end_head;
  int64_t row, end;     // the tile's first row; the chunk's end
  int64_t first_valid;  // rows before it belong to an earlier document
  int64_t last;         // of the chunk

  __device__ Task(const ChunkStateInputs<Bf16>& in, const ChunkStateTiles& tiles) {
    unsigned index = blockIdx.x;
    const int64_t in_chunk = index % unsigned(tiles.per_chunk);
    index /= unsigned(tiles.per_chunk);
    split = index % unsigned(tiles.splits);
    index /= unsigned(tiles.splits);
    g = index % unsigned(in.G);
    chunk_row = index / unsigned(in.G);
    tile = chunk_row * tiles.per_chunk + in_chunk;
    const int64_t heads = in.H / in.G;
    first_head = g * heads + heads * split / tiles.splits;
    end_head = g * heads + heads * (split + 1) / tiles.splits;
    const ChunkRows rows(in, chunk_row);
    const ChunkSpan span(chunk_row % in.M, in.chunk, in.tokens);
    row = rows.end - span.size() + in_chunk * kTokens;
    end = rows.end;
    first_valid = rows.begin;
    last = rows.end - 1;
  }
};

// A head's dstate on its way through registers.
struct StateLoads {
  static constexpr int kLoads = kP * kN / 4 / kThreads;
  float4 values[kLoads];

  __device__ void load(const float* dstate) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      values[i] = reinterpret_cast<const float4*>(dstate)[i * kThreads + threadIdx.x];
  }
  __device__ void store(const SharedTile<kN>& to) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = (i * kThreads + int(threadIdx.x)) * 4;
      const float4& v = values[i];
      *reinterpret_cast<uint2*>(to.element(at / kN, at % kN)) = {pack_bf16(v.x, v.y),
                                                                 pack_bf16(v.z, v.w)};
    }
  }
};

// A token's numbers for one head.
struct TokenLoads {
  float cum, cum_last, dt, ddt, dcum;

  __device__ void load(const ChunkStateInputs<Bf16>& in, const ChunkStateGradients<Bf16>& out,
                       int64_t row, int64_t last, int64_t h) {
    cum = in.cum[row * in.cum_stride + h];
    cum_last = in.cum[last * in.cum_stride + h];
    dt = in.dt[row * in.dt_stride + h];
    ddt = out.ddt[row * out.ddt_stride + h];
    dcum = out.dcum[row * out.dcum_stride + h];
  }
};

// x and dx of a head.
__device__ void copy_head(const ChunkStateInputs<Bf16>& in, const ChunkStateGradients<Bf16>& out,
                          const Task& task, int64_t h, Room& room, int stage) {
  copy_tile_async<kTokens, kP, kThreads>(SharedTile<kP>{room.x[stage]}, in.x + h * in.P,
                                         in.x_stride, task.row, task.end);
  copy_tile_async<kTokens, kP, kThreads>(SharedTile<kP>{room.dx[stage]}, out.dx + h * in.P,
                                         out.dx_stride, task.row, task.end);
}

// The warp's 16 rows of a product: dots with x, and what dx gets. weights and dots are of rows
// group and group + 8.
__device__ void add_dx(const SharedTile<kP>& x, const SharedTile<kP>& dx, const SharedTile<kN>& B,
                       const SharedTile<kN>& dstate, const float (&weights)[2], float (&dots)[2]) {
  const int warp_row = int(threadIdx.x) / kWarp * kMmaM;
  Accumulator v[kP / kMmaN];
#pragma unroll
  for (int k = 0; k < kN; k += kMmaK) {
    const FragmentA a = load_a(B, warp_row, k);
#pragma unroll
    for (int j = 0; j < kP / kMmaN; j += 2) {
      const FragmentPairB b = load_b(dstate, j * kMmaN, k);
      mma(v[j], a, b.halves[0]);
      mma(v[j + 1], a, b.halves[1]);
    }
  }
  dots[0] = dots[1] = 0;
#pragma unroll
  for (int j = 0; j < kP / kMmaN; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp_row + Accumulator::row(2 * i);
      const int column = j * kMmaN + Accumulator::column(0);
      const float left = v[j].values[2 * i], right = v[j].values[2 * i + 1];
      const float2 x2 = unpack_bf16(*reinterpret_cast<const uint32_t*>(x.element(row, column)));
      dots[i] += left * x2.x + right * x2.y;
      uint32_t* const to = reinterpret_cast<uint32_t*>(dx.element(row, column));
      const float2 before = unpack_bf16(*to);
      *to = pack_bf16(before.x + weights[i] * left, before.y + weights[i] * right);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    dots[i] += __shfl_xor_sync(kFullWarp, dots[i], 1);
    dots[i] += __shfl_xor_sync(kFullWarp, dots[i], 2);
  }
}

__device__ void add_dB(const SharedTile<kP>& x, const SharedTile<kN>& dstate,
                       const float (&weights)[2], Accumulator (&dB)[kN / kMmaN]) {
  const int warp_row = int(threadIdx.x) / kWarp * kMmaM;
#pragma unroll
  for (int k = 0; k < kP; k += kMmaK) {
    FragmentA a = load_a(x, warp_row, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x2 = unpack_bf16(a.words[i]);
      a.words[i] = pack_bf16(weights[i % 2] * x2.x, weights[i % 2] * x2.y);
    }
#pragma unroll
    for (int j = 0; j < kN / kMmaN; j += 2) {
      const FragmentPairB b = load_b_transposed(dstate, j * kMmaN, k);
      mma(dB[j], a, b.halves[0]);
      mma(dB[j + 1], a, b.halves[1]);
    }
  }
}

// The warp's rows of dx, finished, to memory.
__device__ void store_dx(const ChunkStateGradients<Bf16>& out, const Task& task, int64_t h,
                         const SharedTile<kP>& dx) {
  const int warp_row = int(threadIdx.x) / kWarp * kMmaM;
  __syncwarp();
#pragma unroll
  for (int i = threadIdx.x % kWarp; i < kMmaM * kP / 8; i += kWarp) {
    const int row = warp_row + i / (kP / 8), column = i % (kP / 8) * 8;
    if (task.row + row >= task.end) continue;
    Pack<Bf16>::load(dx.piece(row, column))
        .store(out.dx + (task.row + row) * out.dx_stride + h * kP + column);
  }
}

__device__ void store_dB(const ChunkStateInputs<Bf16>& in, const ChunkStateGradients<Bf16>& out,
                         const Task& task, float* partial, const Accumulator (&dB)[kN / kMmaN]) {
  const int warp_row = int(threadIdx.x) / kWarp * kMmaM;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row = task.row + warp_row + Accumulator::row(2 * i);
    if (row >= task.end) continue;
#pragma unroll
    for (int j = 0; j < kN / kMmaN; ++j) {
      const int64_t column = task.g * kN + j * kMmaN + Accumulator::column(0);
      const float left = dB[j].values[2 * i], right = dB[j].values[2 * i + 1];
      if (partial != nullptr) {
        *reinterpret_cast<float2*>(partial + row * in.G * kN + column) = {left, right};
      } else {
        uint32_t* const to = reinterpret_cast<uint32_t*>(out.dB + row * out.dB_stride + column);
        const float2 before = unpack_bf16(*to);
        *to = pack_bf16(before.x + left, before.y + right);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(ChunkStateInputs<Bf16> in, ChunkStateGradients<Bf16> out, Partials partials) {
  extern __shared__ __align__(128) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const Task task(in, partials.tiles);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const SharedTile<kN> B{room.B};
  // This lane's own token, if it is one of the first two of its four.
  const int64_t mine = task.row + warp * kMmaM + lane / 4 + lane % 2 * 8;
  const bool owner = lane % 4 < 2 && mine >= task.first_valid && mine < task.end;
  const int64_t token = std::min(mine, task.last);
  const float* dstate = out.dstate + task.chunk_row * out.dstate_stride + task.first_head * kP * kN;

  copy_tile_async<kTokens, kN, kThreads>(B, in.B + task.g * kN, in.B_stride, task.row, task.end);
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (task.first_head + ahead < task.end_head)
      copy_head(in, out, task, task.first_head + ahead, room, ahead);
    commit_copies();
  }
  StateLoads next_state;
  next_state.load(dstate);
  TokenLoads next;
  next.load(in, out, token, task.last, task.first_head);
  Accumulator dB[kN / kMmaN];
  int stage = 0, parity = 0;
  for (int64_t h = task.first_head; h < task.end_head; ++h) {
    const SharedTile<kN> state{room.dstate[parity]};
    const SharedTile<kP> x{room.x[stage]}, dx{room.dx[stage]};
    next_state.store(state);
    const TokenLoads now = next;
    if (h + 1 < task.end_head) {
      dstate += kP * kN;
      next_state.load(dstate);
      next.load(in, out, token, task.last, h + 1);
    }
    wait_copies<kStages - 2>();
    __syncthreads();  // the head has arrived; all are done with the one before
    if (h + kStages - 1 < task.end_head)
      copy_head(in, out, task, h + kStages - 1, room, stage == 0 ? kStages - 1 : stage - 1);
    commit_copies();

    const bool counts = mine >= task.first_valid && mine < task.end;
    const float decay = counts ? expf(now.cum_last - now.cum) : 0.0f;
    const float weight = decay * now.dt;
    const float weights[2] = {__shfl_sync(kFullWarp, weight, lane & ~3),
                              __shfl_sync(kFullWarp, weight, (lane & ~3) + 1)};
    float dots[2];
    add_dx(x, dx, B, state, weights, dots);
    add_dB(x, state, weights, dB);
    store_dx(out, task, h, dx);
    const float dot = lane % 2 == 0 ? dots[0] : dots[1];
    float share = 0;  // exp(0) has none, not even of rounding
    if (owner) {
      out.ddt[mine * out.ddt_stride + h] = now.ddt + decay * dot;
      if (mine != task.last) {
        share = weight * dot;
        out.dcum[mine * out.dcum_stride + h] = now.dcum - share;
      }
    }
    share = warp_sum(share);
    if (lane == 0) partials.shares[(task.tile * kWarps + warp) * in.H + h] = share;
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= 1;
  }
  store_dB(in, out, task,
           partials.dB == nullptr ? nullptr : partials.dB + task.split * partials.split_size, dB);
}

// dcum of chunks' last tokens. A thread adds the warps' shares of a chunk and head in order.
__global__ void __launch_bounds__(kThreads)
    last_tokens_kernel(ChunkStateInputs<Bf16> in, ChunkStateGradients<Bf16> out, Partials partials,
                       int64_t chunks) {
  const int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (index >= chunks * in.H) return;
  const int64_t chunk_row = index / in.H, h = index % in.H;
  const int64_t warps = partials.tiles.per_chunk * kWarps;
  const float* const shares = partials.shares + chunk_row * warps * in.H + h;
  float sum = out.dlog_decay[chunk_row * out.dlog_decay_stride + h];
#pragma unroll 8
  for (int64_t warp = 0; warp < warps; ++warp) sum += shares[warp * in.H];
  const ChunkRows rows(in, chunk_row);
  out.dcum[(rows.end - 1) * out.dcum_stride + h] += sum;
}

__global__ void __launch_bounds__(kThreads)
    add_splits_kernel(const float* partial, int64_t splits, int64_t rows, int64_t columns, Bf16* dB,
                      int64_t stride) {
  const int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (index >= rows * columns) return;
  float sum = 0;
  for (int64_t split = 0; split < splits; ++split) sum += partial[split * rows * columns + index];
  Bf16& to = dB[index / columns * stride + index % columns];
  to = from_float<Bf16>(to_float(to) + sum);
}

}  // namespace

bool chunk_state_backward_fits(const ChunkStateBackward& args) {
  return chunk_state_backward_has_mma(args) &&
         rows_of_16_bytes(args.x, args.B, args.dstate, args.dx, args.dB);
}

void chunk_state_backward_mma(const Context& ctx, const ChunkStateBackward& args,
                              const ChunkStateScratch& scratch) {
  const auto in = chunk_state_inputs<Bf16>(args);
  const auto out = chunk_state_gradients<Bf16>(args);
  const ChunkStateTiles tiles = chunk_state_tiles(args.x.dims, in.G, args.chunk);
  const Partials partials{.dB = tiles.splits == 1 ? nullptr : scratch.dB.as<float>(),
                          .shares = scratch.shares.as<float>(),
                          .split_size = args.x.rows() * in.G * in.N,
                          .tiles = tiles};
  const char* const name = "chunk_state_backward";
  launch(ctx, name,
         {.blocks = unsigned(tiles.count * in.G * tiles.splits),
          .threads = kThreads,
          .shared_bytes = sizeof(Room)},
         backward_kernel, in, out, partials);
  const int64_t chunks = args.dstate.rows();
  launch(ctx, name, {.blocks = unsigned(ceil_div(chunks * in.H, kThreads)), .threads = kThreads},
         last_tokens_kernel, in, out, partials, chunks);
  if (partials.dB == nullptr) return;
  const int64_t rows = args.x.rows(), columns = in.G * in.N;
  launch(ctx, name, {.blocks = unsigned(ceil_div(rows * columns, kThreads)), .threads = kThreads},
         add_splits_kernel, partials.dB, tiles.splits, rows, columns, out.dB, out.dB_stride);
}

}  // namespace sluice::cuda
