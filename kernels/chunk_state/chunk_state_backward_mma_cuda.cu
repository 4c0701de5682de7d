// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
//
// The backward of chunk_state in bf16 on tensor cores, for P = 64 and N = 128.
//
// Floor: bytes. dstate (2 B M H P N bytes in bf16) and x are read, dx is read and written: at
// T = 16384, H = 64 and chunks of 256 tokens 0.47 GB, 0.16 ms; 0.18 ms with chunks of 128. The
// 4 T H P N = 34 GFLOP take two thirds of that.
//
// A block takes 128 tokens of a chunk and a group's heads (or a split of them) one after the other:
//   V = B dstate^T (tokens x P):   dx += w V,   dots = <dstate, x B^T> = V . x
//   dB += (w x) dstate (tokens x N), in registers over all heads
// so that dB is written once and dstate, rounded to bf16 on its way to shared memory, serves both
// products. Two warps share 16 tokens, each with half of the columns: with one warp for all of them
// too few warps fit to hide what each waits for. Weights come and dots go in the order of tiles
// (chunk_state_tokens.cuh). One barrier a head: while a head is worked on, the next one's dstate is
// on its way to registers, and x and dx of the next two to shared memory.
#include "kernels/chunk_state/chunk_state_copies.cuh"
#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/chunk_state/chunk_state_tokens.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTokens = int(kChunkStateTokens);
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kP = 64, kN = 128;
constexpr int kStages = 3;
static_assert(kTokens == kWarps / 2 * kMmaM, "two warps share 16 tokens");

struct alignas(128) Room {
  Bf16 B[kTokens * kN];
  Bf16 dstate[2][kP * kN];
  Bf16 x[kStages][kTokens * kP];
  Bf16 dx[kStages][kTokens * kP];
  float weights[kStages][kTokens];
  float dots[2][2][kTokens];  // of a head; of each half of the columns
};

struct Partials {
  const float* weights;  // (B * M, H * padded)
  float* dots;           // the same
  float* dB;             // (splits, B * T, G * N), or null: dB itself is added to
  int64_t split_size;    // B * T * G * N
  int64_t padded;
  ChunkStateTiles tiles;
};

// What a block does. Rows are counted over the batch.
struct Task {
  int64_t chunk_row, g, split;
  int64_t first_head, end_head;
  int64_t token;     // the tile's first, of the chunk
  int64_t row, end;  // the tile's first row; the chunk's end

  __device__ Task(const ChunkStateInputs<Bf16>& in, const ChunkStateTiles& tiles) {
    unsigned index = blockIdx.x;
    const int64_t in_chunk = index % unsigned(tiles.per_chunk);
    index /= unsigned(tiles.per_chunk);
    split = index % unsigned(tiles.splits);
    index /= unsigned(tiles.splits);
    g = index % unsigned(in.G);
    chunk_row = index / unsigned(in.G);
    const int64_t heads = in.H / in.G;
    first_head = g * heads + heads * split / tiles.splits;
    end_head = g * heads + heads * (split + 1) / tiles.splits;
    const ChunkSpan span(chunk_row % in.M, in.chunk, in.tokens);
    token = in_chunk * kTokens;
    row = chunk_row / in.M * in.tokens + span.begin + token;
    end = row - token + span.size();
  }
};

// A head's dstate on its way through registers, 16 bytes at a time.
template <class S>
struct StateLoads {
  static constexpr int kWidth = Pack<S>::kWidth;
  static constexpr int kLoads = kP * kN / kWidth / kThreads;
  Pack<S> packs[kLoads];

  __device__ void load(const S* dstate) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      packs[i] = Pack<S>::load(dstate + (i * kThreads + int(threadIdx.x)) * kWidth);
  }
  __device__ void store(const SharedTile<kN>& to) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = (i * kThreads + int(threadIdx.x)) * kWidth;
      Bf16* const piece = to.element(at / kN, at % kN);
      if constexpr (std::is_same_v<S, Bf16>) {
        packs[i].store(piece);
      } else {
        const float(&v)[4] = packs[i].values;
        *reinterpret_cast<uint2*>(piece) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
      }
    }
  }
};

// x, dx and the weights, one head after the other.
struct Copies {
  TileCopies<kTokens, kP, kThreads> x, dx;
  const float* weights;  // this thread's, if it is one of the first
  int rows;              // of the tile
  bool weighs;           // this thread has weights to copy, not padding

  template <class S>
  __device__ Copies(const ChunkStateInputs<Bf16>& in, const ChunkStateGradients<Bf16, S>& out,
                    const Partials& partials, const Task& task)
      : x(in.x + task.row * in.x_stride + task.first_head * kP, in.x_stride),
        dx(out.dx + task.row * out.dx_stride + task.first_head * kP, out.dx_stride) {
    const int64_t token = task.token + 4 * int(threadIdx.x);
    weighs = token < partials.padded;
    weights = partials.weights + (task.chunk_row * in.H + task.first_head) * partials.padded +
              (weighs ? token : 0);
    rows = int(std::min<int64_t>(kTokens, task.end - task.row));
  }
  __device__ void copy(const Partials& partials, Room& room, int stage) {
    x.copy(room.x[stage], rows);
    dx.copy(room.dx[stage], rows);
    if (threadIdx.x < kTokens / 4)
      copy_async_16(&room.weights[stage][4 * threadIdx.x], weights, weighs);
    x.from += kP;
    dx.from += kP;
    weights += partials.padded;
  }
};

// The warp's rows and half of the columns.
__device__ inline int warp_row() { return int(threadIdx.x) / (2 * kWarp) * kMmaM; }
__device__ inline int warp_half() { return int(threadIdx.x) / kWarp % 2; }

// dots with x, of the warp's columns, and what dx gets. weights are of rows group and group + 8.
__device__ void add_dx(const SharedTile<kP>& x, const SharedTile<kP>& dx, const SharedTile<kN>& B,
                       const SharedTile<kN>& dstate, const float (&weights)[2],
                       float (&dots)[kTokens]) {
  constexpr int kColumns = kP / 2;
  const int column0 = warp_half() * kColumns;
  Accumulator v[kColumns / kMmaN];
#pragma unroll
  for (int k = 0; k < kN; k += kMmaK) {
    const FragmentA a = load_a(B, warp_row(), k);
#pragma unroll
    for (int j = 0; j < kColumns / kMmaN; j += 2) {
      const FragmentPairB b = load_b(dstate, column0 + j * kMmaN, k);
      mma(v[j], a, b.halves[0]);
      mma(v[j + 1], a, b.halves[1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row() + Accumulator::row(2 * i);
    float dot = 0;
#pragma unroll
    for (int j = 0; j < kColumns / kMmaN; ++j) {
      const int column = column0 + j * kMmaN + Accumulator::column(0);
      const float left = v[j].values[2 * i], right = v[j].values[2 * i + 1];
      const float2 x2 = unpack_bf16(*reinterpret_cast<const uint32_t*>(x.element(row, column)));
      dot += left * x2.x + right * x2.y;
      uint32_t* const to = reinterpret_cast<uint32_t*>(dx.element(row, column));
      const float2 before = unpack_bf16(*to);
      *to = pack_bf16(before.x + weights[i] * left, before.y + weights[i] * right);
    }
    dot += __shfl_xor_sync(kFullWarp, dot, 1);
    dot += __shfl_xor_sync(kFullWarp, dot, 2);
    if (threadIdx.x % 4 == 0) dots[row] = dot;
  }
}

__device__ void add_dB(const SharedTile<kP>& x, const SharedTile<kN>& dstate,
                       const float (&weights)[2], Accumulator (&dB)[kN / 2 / kMmaN]) {
  const int column0 = warp_half() * (kN / 2);
#pragma unroll
  for (int k = 0; k < kP; k += kMmaK) {
    FragmentA a = load_a(x, warp_row(), k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x2 = unpack_bf16(a.words[i]);
      a.words[i] = pack_bf16(weights[i % 2] * x2.x, weights[i % 2] * x2.y);
    }
#pragma unroll
    for (int j = 0; j < kN / 2 / kMmaN; j += 2) {
      const FragmentPairB b = load_b_transposed(dstate, column0 + j * kMmaN, k);
      mma(dB[j], a, b.halves[0]);
      mma(dB[j + 1], a, b.halves[1]);
    }
  }
}

// What the warp has finished of dx, to memory. `to` is the lane's place in the tile's rows; its
// pieces lie 8 rows apart.
__device__ void store_dx(const SharedTile<kP>& dx, Bf16* to, int64_t stride, int row, int rows) {
  const int column = warp_half() * (kP / 2) + int(threadIdx.x) % 4 * 8;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kMmaM; i += 8) {
    if (row + i < rows) Pack<Bf16>::load(dx.piece(row + i, column)).store(to + i * stride);
  }
}

// A finished head's dots, by the first threads.
__device__ void store_dots(const ChunkStateInputs<Bf16>& in, const Partials& partials,
                           const Task& task, int64_t h, const float (&dots)[2][kTokens]) {
  const int t = threadIdx.x;
  if (t >= kTokens || task.token + t >= partials.padded) return;
  partials.dots[(task.chunk_row * in.H + h) * partials.padded + task.token + t] =
      dots[0][t] + dots[1][t];
}

// partial: the split's dB, or null.
template <class S>
__device__ void store_dB(const ChunkStateInputs<Bf16>& in, const ChunkStateGradients<Bf16, S>& out,
                         const Task& task, float* partial,
                         const Accumulator (&dB)[kN / 2 / kMmaN]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row = task.row + warp_row() + Accumulator::row(2 * i);
    if (row >= task.end) continue;
#pragma unroll
    for (int j = 0; j < kN / 2 / kMmaN; ++j) {
      const int64_t column =
          task.g * kN + warp_half() * (kN / 2) + j * kMmaN + Accumulator::column(0);
      const float left = dB[j].values[2 * i], right = dB[j].values[2 * i + 1];
      if (partial != nullptr) {
        *reinterpret_cast<float2*>(partial + row * in.G * kN + column) = make_float2(left, right);
      } else {
        uint32_t* const to = reinterpret_cast<uint32_t*>(out.dB + row * out.dB_stride + column);
        const float2 before = unpack_bf16(*to);
        *to = pack_bf16(before.x + left, before.y + right);
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(ChunkStateInputs<Bf16> in, ChunkStateGradients<Bf16, S> out,
                    Partials partials) {
  extern __shared__ __align__(128) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const Task task(in, partials.tiles);
  const SharedTile<kN> B{room.B};
  const int row = warp_row() + Accumulator::row(0);
  const S* dstate = out.dstate + task.chunk_row * out.dstate_stride + task.first_head * kP * kN;

  copy_tile_async<kTokens, kN, kThreads>(B, in.B + task.g * kN, in.B_stride, task.row, task.end);
  Copies copies(in, out, partials, task);
#pragma unroll 1
  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (task.first_head + ahead < task.end_head) copies.copy(partials, room, ahead);
    commit_copies();
  }
  Bf16* dx_to = out.dx + (task.row + row) * out.dx_stride + task.first_head * kP +
                warp_half() * (kP / 2) + int(threadIdx.x) % 4 * 8;
  StateLoads<S> next;
  next.load(dstate);
  Accumulator dB[kN / 2 / kMmaN];
  int stage = 0, parity = 0;
  for (int64_t h = task.first_head; h < task.end_head; ++h) {
    const SharedTile<kN> state{room.dstate[parity]};
    const SharedTile<kP> x{room.x[stage]}, dx{room.dx[stage]};
    next.store(state);
    dstate += kP * kN;
    if (h + 1 < task.end_head) next.load(dstate);
    wait_copies<kStages - 2>();
    __syncthreads();  // the head has arrived; all are done with the one before
    if (h + kStages - 1 < task.end_head)
      copies.copy(partials, room, (stage + kStages - 1) % kStages);
    commit_copies();
    if (h > task.first_head) store_dots(in, partials, task, h - 1, room.dots[parity ^ 1]);

    const float weights[2] = {room.weights[stage][row], room.weights[stage][row + 8]};
    add_dx(x, dx, B, state, weights, room.dots[parity][warp_half()]);
    add_dB(x, state, weights, dB);
    store_dx(dx, dx_to, out.dx_stride, row, copies.rows);
    dx_to += kP;
    stage = (stage + 1) % kStages;
    parity ^= 1;
  }
  __syncthreads();
  store_dots(in, partials, task, task.end_head - 1, room.dots[parity ^ 1]);
  store_dB(in, out, task,
           partials.dB == nullptr ? nullptr : partials.dB + task.split * partials.split_size, dB);
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
  const ChunkStateTiles tiles = chunk_state_tiles(args.x.dims, in.G, args.chunk);
  const Partials partials{.weights = scratch.weights.as<float>(),
                          .dots = scratch.dots.as<float>(),
                          .dB = tiles.splits == 1 ? nullptr : scratch.dB.as<float>(),
                          .split_size = args.x.rows() * in.G * in.N,
                          .padded = padded_chunk(in.chunk, in.tokens),
                          .tiles = tiles};
  const char* const name = "chunk_state_backward";
  const Grid tokens = token_grid(args.dstate.rows(), in.H);
  write_chunk_weights(ctx, name, in, args.x.dim(0), {.leaving = scratch.weights.as<float>()});
  dispatch_float(args.dstate.dtype, [&]<class S>() {
    const auto out = chunk_state_gradients<Bf16, S>(args);
    launch(ctx, name,
           {.blocks = unsigned(tiles.count * in.G * tiles.splits),
            .threads = kThreads,
            .shared_bytes = sizeof(Room)},
           backward_kernel<S>, in, out, partials);
    launch(ctx, name, tokens, chunk_dots_kernel<Bf16, S>, in, out, partials.padded,
           ChunkDots{.leaving = partials.dots});
  });
  if (partials.dB == nullptr) return;
  const int64_t rows = args.x.rows(), columns = in.G * in.N;
  launch(ctx, name, {.blocks = unsigned(ceil_div(rows * columns, kThreads)), .threads = kThreads},
         add_splits_kernel, partials.dB, tiles.splits, rows, columns, pointer<Bf16>(args.dB),
         args.dB.row_stride);
}

}  // namespace sluice::cuda
