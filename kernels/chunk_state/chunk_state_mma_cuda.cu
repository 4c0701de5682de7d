// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
//
// Walks over the chunks of a row, in bf16 on tensor cores: forward over x and B to the states that
// enter chunks, in reverse over dy and C to the gradients of those that leave them; and folds,
// which go the same ways from zero and keep nothing but what they end with.
//
// Floor: bytes. x (or dy) is read once (2 T H P bytes), and a walk writes states once (2 B M H P
// N): at T = 16384, H = 64, P = 64, N = 128 a walk moves 0.27 GB with chunks of 128 tokens, 0.09
// ms; 0.20 GB with 256. A fold moves 0.13 GB, 0.045 ms. The 2 T H P N = 17 GFLOP take 0.03 ms.
// Against chunks and their passing one after the other a walk saves one write and one read of all
// states.
//
// state (P x N) = sum over s of (w_s x_s) B_s^T: tokens are the depth of the product, so x and B
// are the transposed operands as they lie in memory, and the weights scale x in registers. A block
// is a warpgroup that owns 64 x kColumns of one head's state in registers and goes over tiles of 64
// tokens, some stages of cp.async deep: of all chunks of the row or of a run of them. Runs side by
// side fill the machine where rows and heads are few; a fold of all of them, and passing what they
// end with, tell what each begins with. What is carried is f32; what is kept at every chunk is an
// operand of products and no more: bf16. What bounds it beside memory are the L2 cache's reads, as
// every head reads B again: whole rows of N read least, halves fill the machine where there are few
// heads.
#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/chunk_state/chunk_state_tokens.cuh"
#include "kernels/chunk_state/state_tile.cuh"
#include "kernels/device/launch.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kRows = 64;  // of P
constexpr int kThreads = kWarpgroup;

struct StateArrays {
  Bf16* carried = nullptr;         // to each chunk; only if they are kept
  const float* decay = nullptr;    // (B * M, H)
  const float* weights = nullptr;  // (B * M, H * padded)
  const float* begin = nullptr;    // of a run's head, P * N; may be null
  float* end = nullptr;            // likewise
  float* run_decay = nullptr;      // (B * runs, H), only if none are kept
  int64_t carried_stride = 0, decay_stride = 0, run_decay_stride = 0;
  int64_t begin_run_stride = 0, begin_head_stride = 0, end_run_stride = 0, end_head_stride = 0;
  int64_t padded = 0;
  int64_t run = 0, runs = 1;  // chunks of a run, runs of a row
  int step = 1;               // from chunk to chunk: 1 or -1
};

// Of kColumns, on a multiprocessor.
constexpr int blocks_at_once(int columns) { return columns == 128 ? 3 : 4; }

template <int kColumns>
struct alignas(1024) Room {
  static constexpr int kStages = kColumns == 128 ? 3 : 4;
  Bf16 x[kStages][kTokens * kRows];
  Bf16 B[kStages][kTokens * kColumns];
  float weights[kStages][kTokens];
  float decay[kStages];
};

// What a block does: its head, its part of the state, its chunks.
struct Task {
  int64_t b, h, p0, n0, run, first_chunk, end_chunk;

  template <int kColumns>
  static __device__ Task of(const ChunkStateInputs<Bf16>& in, const StateArrays& out) {
    const unsigned columns = unsigned(in.N) / kColumns, rows = unsigned(in.P) / kRows;
    unsigned index = blockIdx.x;
    Task task;
    task.n0 = index % columns * kColumns;
    index /= columns;
    task.p0 = index % rows * kRows;
    index /= rows;
    task.h = index % unsigned(in.H);
    index /= unsigned(in.H);
    task.run = index % unsigned(out.runs);
    task.b = index / unsigned(out.runs);
    const int64_t begin = task.run * out.run, end = std::min(in.M, begin + out.run);
    task.first_chunk = out.step > 0 ? begin : end - 1;
    task.end_chunk = out.step > 0 ? end : begin - 1;
    return task;
  }
};

// A tile of tokens on the walk.
struct Tile {
  int64_t m;   // the chunk
  int token;   // the tile's first, of the chunk
  int tokens;  // of the chunk

  __device__ Tile(const ChunkStateInputs<Bf16>& in, int64_t m) : m(m), token(0) { size(in); }
  __device__ void size(const ChunkStateInputs<Bf16>& in) {
    tokens = int(std::min(in.chunk, in.tokens - m * in.chunk));
  }
  __device__ void advance(const ChunkStateInputs<Bf16>& in, int step) {
    token += kTokens;
    if (token < tokens) return;
    token = 0;
    m += step;
    size(in);
  }
};

// What is copied, one tile after the other.
template <int kColumns>
struct Copies {
  Tile at;
  PanelCopies<kTokens, kRows, kThreads> x;
  PanelCopies<kTokens, kColumns, kThreads> B;
  const float *weights, *decay;  // of the row's first chunk

  __device__ Copies(const ChunkStateInputs<Bf16>& in, const StateArrays& out, const Task& task)
      : at(in, task.first_chunk),
        x(in.x + task.b * in.tokens * in.x_stride + task.h * in.P + task.p0, in.x_stride),
        B(in.B + task.b * in.tokens * in.B_stride + task.h * in.G / in.H * in.N + task.n0,
          in.B_stride),
        weights(out.weights + (task.b * in.M * in.H + task.h) * out.padded + 4 * int(threadIdx.x)),
        decay(out.decay + task.b * in.M * out.decay_stride + task.h) {}

  __device__ void copy(const ChunkStateInputs<Bf16>& in, const StateArrays& out,
                       Room<kColumns>& room, int stage) {
    const int64_t row = at.m * in.chunk + at.token;
    x.copy(room.x[stage], row * in.x_stride, at.tokens - at.token);
    B.copy(room.B[stage], row * in.B_stride, at.tokens - at.token);
    const int t = threadIdx.x;
    if (t < kTokens / 4)
      copy_async_16(&room.weights[stage][4 * t], weights + at.m * in.H * out.padded + at.token);
    if (t == kTokens / 4) copy_async_4(&room.decay[stage], decay + at.m * out.decay_stride);
    at.advance(in, out.step);
  }
};

// The transposed rows of the warp, each token times its weight. Words 0 and 1 of a fragment are
// tokens 2 pair and the next, words 2 and 3 eight further.
__device__ inline void load_weighted(FragmentA (&a)[kTokens / kMmaK],
                                     const PanelTile<kTokens, kRows>& x, const float* weights) {
#pragma unroll
  for (int k = 0; k < kTokens / kMmaK; ++k) {
    a[k] = load_a_transposed(x, warpgroup_warp() * kMmaM, k * kMmaK);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 weight =
          *reinterpret_cast<const float2*>(weights + k * kMmaK + i / 2 * 8 + threadIdx.x % 4 * 2);
      const float2 value = unpack_bf16(a[k].words[i]);
      a[k].words[i] = pack_bf16(weight.x * value.x, weight.y * value.y);
    }
  }
}

// With kKeep what is carried to each chunk is kept; without, what becomes of a run's decay.
template <int kColumns, bool kKeep>
__global__ void __launch_bounds__(kThreads, blocks_at_once(kColumns))
    states_kernel(ChunkStateInputs<Bf16> in, StateArrays out) {
  constexpr int kStages = Room<kColumns>::kStages;
  extern __shared__ __align__(1024) unsigned char shared[];
  Room<kColumns>& room = *reinterpret_cast<Room<kColumns>*>(shared);
  const Task task = Task::of<kColumns>(in, out);
  const int64_t part = task.p0 * in.N + task.n0;  // of a head's state
  Bf16* const carried =
      out.carried + task.b * in.M * out.carried_stride + task.h * in.P * in.N + part;
  StateTile<kColumns> state;
  float run_decay = 1;
  const int64_t run_row = task.b * out.runs + task.run;
  if (kKeep && out.begin != nullptr)
    state.load(out.begin + run_row * out.begin_run_stride + task.h * out.begin_head_stride + part,
               in.N);

  Copies<kColumns> copies(in, out, task);
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (copies.at.m != task.end_chunk) copies.copy(in, out, room, stage);
    commit_copies();
  }
  int stage = 0;
#pragma unroll 1
  for (Tile at(in, task.first_chunk); at.m != task.end_chunk; at.advance(in, out.step)) {
    wait_tiles<kStages - 2>();  // the stage has arrived; all are done with the one before
    if (copies.at.m != task.end_chunk) copies.copy(in, out, room, (stage + kStages - 1) % kStages);
    commit_copies();
    if (at.token == 0) {
      if (kKeep) state.store(carried + at.m * out.carried_stride, in.N);
      if (!kKeep) run_decay *= room.decay[stage];
      state.scale(room.decay[stage]);
    }
    FragmentA x[kTokens / kMmaK];
    load_weighted(x, {room.x[stage]}, room.weights[stage]);
    if constexpr (kHasWgmma) pin(x);
    begin_sums(state.acc);
    add_product<kTokens, kColumns>(state.acc, x, {room.B[stage]});
    end_sums();
    wait_sums<0>(state.acc);
    stage = (stage + 1) % kStages;
  }
  if (out.end != nullptr)
    state.store(out.end + run_row * out.end_run_stride + task.h * out.end_head_stride + part, in.N);
  if (!kKeep && part == 0 && threadIdx.x == 0)
    out.run_decay[run_row * out.run_decay_stride + task.h] = run_decay;
}

template <bool kKeep>
void launch_states(const Context& ctx, const char* name, const ChunkStateInputs<Bf16>& in,
                   int64_t batch, const StateArrays& out) {
  const int64_t rows = batch * out.runs * in.H * (in.P / kRows);
  const auto run = [&]<int kColumns>() {
    launch(ctx, name,
           {.blocks = unsigned(rows * (in.N / kColumns)),
            .threads = kThreads,
            .shared_bytes = sizeof(Room<kColumns>)},
           states_kernel<kColumns, kKeep>, in, out);
  };
  constexpr int64_t kEnough = 120;  // blocks: nearly one a multiprocessor of an H100
  if (in.N % 128 == 0 && rows * (in.N / 128) >= kEnough) {
    run.template operator()<128>();
  } else {
    run.template operator()<64>();
  }
}

// x and B, or dy and C; nothing of documents and steps, which the weights are of.
ChunkStateInputs<Bf16> walk_inputs(const ConstTensorView& x, const ConstTensorView& B,
                                   int64_t chunk) {
  return {.x = pointer<Bf16>(x),
          .B = pointer<Bf16>(B),
          .x_stride = x.row_stride,
          .B_stride = B.row_stride,
          .tokens = x.dim(1),
          .H = x.dim(2),
          .P = x.dim(3),
          .G = B.dim(2),
          .N = B.dim(3),
          .chunk = chunk,
          .M = num_chunks(x.dim(1), chunk)};
}

}  // namespace

void write_leaving_weights(const Context& ctx, const EnteringStates& args, TensorView weights) {
  write_chunk_weights(ctx, "entering_states", chunk_state_inputs<Bf16>(args), args.x.dim(0),
                      {.leaving = weights.as<float>(),
                       .decay = args.decay.as<float>(),
                       .decay_stride = args.decay.row_stride});
}

void walk_chunks_mma(const Context& ctx, const ChunkWalk& args) {
  const auto in = walk_inputs(args.x, args.B, args.chunk);
  const ChunkRuns& runs = args.runs;
  StateArrays out{.decay = args.decay.as<float>(),
                  .weights = args.weights.as<float>(),
                  .decay_stride = args.decay.row_stride,
                  .padded = padded_chunk(in.chunk, in.tokens),
                  .run = in.M,
                  .step = args.reverse ? -1 : 1};
  if (runs.state) out.run = runs.chunks, out.runs = runs.state.dim(1);
  if (!args.carried) {
    out.end = runs.state.as<float>();
    out.end_run_stride = runs.state.row_stride, out.end_head_stride = in.P * in.N;
    out.run_decay = runs.decay.as<float>(), out.run_decay_stride = runs.decay.row_stride;
    return launch_states<false>(ctx, args.name, in, args.x.dim(0), out);
  }
  out.carried = pointer<Bf16>(args.carried), out.carried_stride = args.carried.row_stride;
  if (runs.state) {
    out.begin = runs.state.as<float>();
    out.begin_run_stride = runs.state.row_stride, out.begin_head_stride = in.P * in.N;
  } else {
    out.begin = optional_pointer<float>(args.begin), out.end = optional_pointer<float>(args.end);
    out.begin_head_stride = args.begin.row_stride, out.end_head_stride = args.end.row_stride;
    out.begin_run_stride = in.H * args.begin.row_stride;
    out.end_run_stride = in.H * args.end.row_stride;
  }
  launch_states<true>(ctx, args.name, in, args.x.dim(0), out);
}

}  // namespace sluice::cuda
