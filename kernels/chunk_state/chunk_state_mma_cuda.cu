// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
//
// What chunks add, and the walk over them, in bf16 on tensor cores.
//
// Floor: bytes. x is read once (2 T H P bytes), states are written once (4 B M H P N): at
// T = 16384, H = 64, P = 64, N = 128 and chunks of 256 tokens 0.27 GB, 0.09 ms; 0.13 ms with chunks
// of 128. The 2 T H P N = 17 GFLOP take half of that. Against chunk_state and state_passing one
// after the other the walk saves one write and one read of all states: half of the bytes.
//
// state (P x N) = sum over s of (w_s x_s) B_s^T: tokens are the depth of the product, so x and B
// are the transposed operands as they lie in memory, and the weights scale x in registers. A block
// owns 64 x kColumns of one head's state in registers (a warp 16 x kColumns / 2) and walks over
// tiles of 64 tokens, four stages of cp.async deep: of one chunk, or with kPass of all chunks of
// the row. What bounds it beside memory are the L2 cache's reads, as every head reads B again: the
// widest block that leaves two a multiprocessor reads least.
#include "kernels/chunk_state/chunk_state_copies.cuh"
#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/chunk_state/chunk_state_tokens.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kRows = 64;  // of P
constexpr int kThreads = 256;
constexpr int kStages = 4;

struct StateArrays {
  float* state;          // with kPass the incoming one
  const float* decay;    // as chunk_weights_kernel wrote it
  const float* weights;  // (B * M, H * padded)
  const float* initial;  // may be null
  float* final_state;    // may be null
  int64_t state_stride, decay_stride, initial_stride, final_stride;
  int64_t padded;
};

template <int kColumns>
struct alignas(128) Room {
  Bf16 x[kStages][kTokens * kRows];
  Bf16 B[kStages][kTokens * kColumns];
  float weights[kStages][kTokens];
  float decay[kStages];
};

// What a block does: its head, its part of the state, its chunks.
struct Task {
  int64_t b, h, p0, n0, first_chunk, end_chunk;

  template <int kColumns, bool kPass>
  static __device__ Task of(const ChunkStateInputs<Bf16>& in) {
    const unsigned columns = unsigned(in.N) / kColumns, rows = unsigned(in.P) / kRows;
    unsigned index = blockIdx.x;
    Task task;
    task.n0 = index % columns * kColumns;
    index /= columns;
    task.p0 = index % rows * kRows;
    index /= rows;
    task.h = index % unsigned(in.H);
    index /= unsigned(in.H);
    task.b = kPass ? index : index / unsigned(in.M);
    task.first_chunk = kPass ? 0 : index % unsigned(in.M);
    task.end_chunk = kPass ? in.M : task.first_chunk + 1;
    return task;
  }
};

// A tile of tokens on the walk.
struct Tile {
  int64_t m;   // the chunk
  int left;    // tokens of the chunk from the tile's first on
  bool first;  // of the chunk

  __device__ Tile(const ChunkStateInputs<Bf16>& in, int64_t m)
      : m(m), left(size(in)), first(true) {}
  __device__ int size(const ChunkStateInputs<Bf16>& in) const {
    return int(std::min(in.chunk, in.tokens - m * in.chunk));
  }
  __device__ void advance(const ChunkStateInputs<Bf16>& in) {
    first = left <= kTokens;
    m += first;
    left = first ? size(in) : left - kTokens;
  }
};

// What is copied, one tile after the other.
template <int kColumns>
struct Copies {
  Tile at;
  TileCopies<kTokens, kRows, kThreads> x;
  TileCopies<kTokens, kColumns, kThreads> B;
  const float* weights;  // this thread's, if it is one of the first
  const float* decay;

  __device__ Copies(const ChunkStateInputs<Bf16>& in, const StateArrays& out, const Task& task)
      : at(in, task.first_chunk),
        x(in.x + first_row(in, task) * in.x_stride + task.h * in.P + task.p0, in.x_stride),
        B(in.B + first_row(in, task) * in.B_stride + task.h * in.G / in.H * in.N + task.n0,
          in.B_stride) {
    const int64_t chunk_row = task.b * in.M + at.m;
    weights = out.weights + (chunk_row * in.H + task.h) * out.padded + 4 * int(threadIdx.x);
    decay = out.decay + chunk_row * out.decay_stride + task.h;
  }
  static __device__ int64_t first_row(const ChunkStateInputs<Bf16>& in, const Task& task) {
    return task.b * in.tokens + task.first_chunk * in.chunk;
  }
  __device__ void copy(const ChunkStateInputs<Bf16>& in, const StateArrays& out,
                       Room<kColumns>& room, int stage) {
    x.copy(room.x[stage], at.left);
    B.copy(room.B[stage], at.left);
    const int t = threadIdx.x;
    if (t < kTokens / 4) copy_async_16(&room.weights[stage][4 * t], weights);
    if (t == kTokens / 4) copy_async_4(&room.decay[stage], decay);
    const int step = at.left < kTokens ? at.left : kTokens;
    x.from += step * in.x_stride;
    B.from += step * in.B_stride;
    weights += kTokens;
    at.advance(in);
    if (!at.first) return;
    weights += in.H * out.padded - out.padded;
    decay += out.decay_stride;
  }
};

// One k step of A: words 0 and 1 are tokens 2 pair and the next, words 2 and 3 eight further.
__device__ inline void scale_tokens(FragmentA& a, const float* weights) {
  const int pair = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 weight = *reinterpret_cast<const float2*>(weights + 2 * pair + i / 2 * 8);
    const float2 x = unpack_bf16(a.words[i]);
    a.words[i] = pack_bf16(weight.x * x.x, weight.y * x.y);
  }
}

// A warp's part of the block's state.
template <int kColumns>
struct StateTile {
  static constexpr int kCount = kColumns / 2 / kMmaN;
  Accumulator acc[kCount];

  static __device__ int row() { return int(threadIdx.x) / 64 * kMmaM; }
  static __device__ int column() { return int(threadIdx.x) / 32 % 2 * (kColumns / 2); }

  __device__ void add_tile(const SharedTile<kRows>& x, const SharedTile<kColumns>& B,
                           const float* weights) {
#pragma unroll
    for (int k = 0; k < kTokens; k += kMmaK) {
      FragmentA a = load_a_transposed(x, row(), k);
      scale_tokens(a, weights + k);
#pragma unroll
      for (int n = 0; n < kCount; n += 2) {
        const FragmentPairB b = load_b_transposed(B, column() + n * kMmaN, k);
        mma(acc[n], a, b.halves[0]);
        mma(acc[n + 1], a, b.halves[1]);
      }
    }
  }
  __device__ void scale(float factor) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n].values[i] *= factor;
    }
  }
  // Where values[i] of acc[0] lies in a head's state, whose rows have N columns.
  static __device__ int64_t place(int i, int64_t N) {
    return (row() + Accumulator::row(i)) * N + column() + Accumulator::column(i);
  }
  // `to` and `from` point at the block's part of the state.
  __device__ void store(float* to, int64_t N) const {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      float* const pair = to + place(i, N);
#pragma unroll
      for (int n = 0; n < kCount; ++n)
        *reinterpret_cast<float2*>(pair + n * kMmaN) =
            make_float2(acc[n].values[i], acc[n].values[i + 1]);
    }
  }
  __device__ void load(const float* from, int64_t N) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int n = 0; n < kCount; ++n) acc[n].values[i] = from[place(i, N) + n * kMmaN];
    }
  }
};

template <int kColumns, bool kPass>
__global__ void __launch_bounds__(kThreads, 2)
    states_kernel(ChunkStateInputs<Bf16> in, StateArrays out) {
  extern __shared__ __align__(128) unsigned char shared[];
  Room<kColumns>& room = *reinterpret_cast<Room<kColumns>*>(shared);
  const Task task = Task::of<kColumns, kPass>(in);
  const int64_t part = task.h * in.P * in.N + task.p0 * in.N + task.n0;
  const int64_t end_part = task.p0 * in.N + task.n0;  // of the states of (B, H)
  const int64_t head_row = task.b * in.H + task.h;
  StateTile<kColumns> state;
  if (kPass && out.initial != nullptr)
    state.load(out.initial + head_row * out.initial_stride + end_part, in.N);

  Copies<kColumns> copies(in, out, task);
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (copies.at.m < task.end_chunk) copies.copy(in, out, room, stage);
    commit_copies();
  }
  int stage = 0;
  float* to = out.state + (task.b * in.M + task.first_chunk) * out.state_stride + part;
  for (Tile at(in, task.first_chunk); at.m < task.end_chunk; at.advance(in)) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the stage has arrived; all are done with the one before
    if (copies.at.m < task.end_chunk) copies.copy(in, out, room, (stage + kStages - 1) % kStages);
    commit_copies();
    if (kPass && at.first) {
      state.store(to, in.N);
      state.scale(room.decay[stage]);
      to += out.state_stride;
    }
    state.add_tile(SharedTile<kRows>{room.x[stage]}, SharedTile<kColumns>{room.B[stage]},
                   room.weights[stage]);
    if (!kPass && at.left <= kTokens) state.store(to, in.N);
    stage = (stage + 1) % kStages;
  }
  if (kPass && out.final_state != nullptr)
    state.store(out.final_state + head_row * out.final_stride + end_part, in.N);
}

template <bool kPass>
void launch_states(const Context& ctx, const char* name, const ChunkStateForward& args,
                   StateArrays out) {
  const auto in = chunk_state_inputs<Bf16>(args);
  const int64_t batch = args.x.dim(0);
  out.state = args.state.as<float>();
  out.decay = args.decay.as<float>();
  out.state_stride = args.state.row_stride;
  out.decay_stride = args.decay.row_stride;
  out.padded = padded_chunk(in.chunk, in.tokens);
  launch(ctx, name, token_grid(batch * in.M, in.H), chunk_weights_kernel<Bf16>, in, out.padded,
         const_cast<float*>(out.weights), args.decay.as<float>(), out.decay_stride);

  const int64_t rows = batch * (kPass ? 1 : in.M) * in.H * (in.P / kRows);
  constexpr int64_t kEnough = 240;  // blocks: nearly two a multiprocessor of an H100
  if (in.N % 128 == 0 && rows * (in.N / 128) >= kEnough) {
    launch(ctx, name,
           {.blocks = unsigned(rows * (in.N / 128)),
            .threads = kThreads,
            .shared_bytes = sizeof(Room<128>)},
           states_kernel<128, kPass>, in, out);
  } else {
    launch(ctx, name,
           {.blocks = unsigned(rows * (in.N / 64)),
            .threads = kThreads,
            .shared_bytes = sizeof(Room<64>)},
           states_kernel<64, kPass>, in, out);
  }
}

}  // namespace

bool chunk_states_fit(const ChunkStateForward& args, const StatePassingForward& passing) {
  return chunk_states_have_mma(args.x, args.B, args.chunk) &&
         rows_of_16_bytes(args.x, args.B, args.state, passing.initial, passing.final_state);
}

void chunk_state_forward_mma(const Context& ctx, const ChunkStateForward& args,
                             TensorView weights) {
  launch_states<false>(ctx, "chunk_state_forward", args, {.weights = weights.as<float>()});
}

void entering_states_mma(const Context& ctx, const ChunkStateForward& args,
                         const StatePassingForward& passing, TensorView weights) {
  launch_states<true>(ctx, "entering_states", args,
                      {.weights = weights.as<float>(),
                       .initial = optional_pointer<float>(passing.initial),
                       .final_state = optional_pointer<float>(passing.final_state),
                       .initial_stride = passing.initial.row_stride,
                       .final_stride = passing.final_state.row_stride});
}

}  // namespace sluice::cuda
