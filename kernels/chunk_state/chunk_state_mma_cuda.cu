// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
//
// What chunks add, and the walks over them, in bf16 on tensor cores: forward over x and B to the
// states that enter chunks, in reverse over dy and C to the gradients of those that leave them.
//
// Floor: bytes. x (or dy) is read once (2 T H P bytes), states are written once (2 B M H P N, twice
// that where they are f32): at T = 16384, H = 64, P = 64, N = 128 a walk moves 0.27 GB with chunks
// of 128 tokens, 0.09 ms; 0.20 GB with 256. The 2 T H P N = 17 GFLOP take a third of that. Against
// chunks and their passing one after the other a walk saves one write and one read of all states.
//
// state (P x N) = sum over s of (w_s x_s) B_s^T: tokens are the depth of the product, so x and B
// are the transposed operands as they lie in memory, and the weights scale x in registers. A block
// is a warpgroup that owns 64 x kColumns of one head's state in registers and walks over tiles of
// 64 tokens, some stages of cp.async deep: of one chunk, or with kPass of all chunks of the row.
// What is carried is f32; what is written on a walk is an operand of products and no more: bf16.
// What bounds it beside memory are the L2 cache's reads, as every head reads B again: whole rows of
// N read least, halves fill the machine where there are few heads.
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

template <bool kPass>
using StateElement = std::conditional_t<kPass, Bf16, float>;

struct StateArrays {
  void* state;           // of StateElement; with kPass what is carried to each chunk
  const float* decay;    // (B * M, H)
  const float* weights;  // (B * M, H * padded)
  const float* initial;  // may be null
  float* final_state;    // may be null
  int64_t state_stride, decay_stride, initial_stride, final_stride;
  int64_t padded;
  int step;  // from chunk to chunk on the walk: 1 or -1
};

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
  int64_t b, h, p0, n0, first_chunk, end_chunk;

  template <int kColumns, bool kPass>
  static __device__ Task of(const ChunkStateInputs<Bf16>& in, int step) {
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
    if (kPass) {
      task.first_chunk = step > 0 ? 0 : in.M - 1;
      task.end_chunk = step > 0 ? in.M : -1;
    } else {
      task.first_chunk = index % unsigned(in.M);
      task.end_chunk = task.first_chunk + step;
    }
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
  __device__ bool last() const { return tokens - token <= kTokens; }
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

template <int kColumns, bool kPass>
__global__ void __launch_bounds__(kThreads, kColumns == 128 ? 3 : 4)
    states_kernel(ChunkStateInputs<Bf16> in, StateArrays out) {
  using Element = StateElement<kPass>;
  constexpr int kStages = Room<kColumns>::kStages;
  extern __shared__ __align__(1024) unsigned char shared[];
  Room<kColumns>& room = *reinterpret_cast<Room<kColumns>*>(shared);
  const Task task = Task::of<kColumns, kPass>(in, out.step);
  const int64_t end_part = task.p0 * in.N + task.n0;  // of the states of (B, H)
  const int64_t head_row = task.b * in.H + task.h;
  Element* const states = static_cast<Element*>(out.state) + task.b * in.M * out.state_stride +
                          task.h * in.P * in.N + end_part;
  StateTile<kColumns> state;
  if (kPass && out.initial != nullptr)
    state.load(out.initial + head_row * out.initial_stride + end_part, in.N);

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
    if (kPass && at.token == 0) {
      state.store(states + at.m * out.state_stride, in.N);
      state.scale(room.decay[stage]);
    }
    FragmentA x[kTokens / kMmaK];
    load_weighted(x, {room.x[stage]}, room.weights[stage]);
    if constexpr (kHasWgmma) pin(x);
    begin_sums(state.acc);
    add_product<kTokens, kColumns>(state.acc, x, {room.B[stage]});
    end_sums();
    wait_sums<0>(state.acc);
    if (!kPass && at.last()) state.store(states + at.m * out.state_stride, in.N);
    stage = (stage + 1) % kStages;
  }
  if (kPass && out.final_state != nullptr)
    state.store(out.final_state + head_row * out.final_stride + end_part, in.N);
}

template <bool kPass>
void launch_states(const Context& ctx, const char* name, const ChunkStateInputs<Bf16>& in,
                   int64_t batch, const StateArrays& out) {
  const int64_t rows = batch * (kPass ? 1 : in.M) * in.H * (in.P / kRows);
  const auto run = [&]<int kColumns>() {
    launch(ctx, name,
           {.blocks = unsigned(rows * (in.N / kColumns)),
            .threads = kThreads,
            .shared_bytes = sizeof(Room<kColumns>)},
           states_kernel<kColumns, kPass>, in, out);
  };
  constexpr int64_t kEnough = 120;  // blocks: nearly one a multiprocessor of an H100
  if (in.N % 128 == 0 && rows * (in.N / 128) >= kEnough) {
    run.template operator()<128>();
  } else {
    run.template operator()<64>();
  }
}

}  // namespace

bool chunk_states_fit(const ChunkStateForward& args) {
  return chunk_states_have_mma(args.x, args.B, args.chunk) &&
         rows_of_16_bytes(args.x, args.B, args.state);
}

void chunk_state_forward_mma(const Context& ctx, const ChunkStateForward& args,
                             TensorView weights) {
  const auto in = chunk_state_inputs<Bf16>(args);
  const char* const name = "chunk_state_forward";
  write_chunk_weights(ctx, name, in, args.x.dim(0),
                      {.leaving = weights.as<float>(),
                       .decay = args.decay.as<float>(),
                       .decay_stride = args.decay.row_stride});
  launch_states<false>(ctx, name, in, args.x.dim(0),
                       {.state = args.state.as<float>(),
                        .decay = args.decay.as<float>(),
                        .weights = weights.as<float>(),
                        .state_stride = args.state.row_stride,
                        .decay_stride = args.decay.row_stride,
                        .padded = padded_chunk(in.chunk, in.tokens),
                        .step = 1});
}

void entering_states_mma(const Context& ctx, const EnteringStates& args, TensorView weights) {
  const auto in = chunk_state_inputs<Bf16>(args);
  const char* const name = "entering_states";
  write_chunk_weights(ctx, name, in, args.x.dim(0),
                      {.leaving = weights.as<float>(),
                       .decay = args.decay.as<float>(),
                       .decay_stride = args.decay.row_stride});
  launch_states<true>(ctx, name, in, args.x.dim(0),
                      {.state = pointer<Bf16>(args.incoming),
                       .decay = args.decay.as<float>(),
                       .weights = weights.as<float>(),
                       .initial = optional_pointer<float>(args.initial),
                       .final_state = optional_pointer<float>(args.final_state),
                       .state_stride = args.incoming.row_stride,
                       .decay_stride = args.decay.row_stride,
                       .initial_stride = args.initial.row_stride,
                       .final_stride = args.final_state.row_stride,
                       .padded = padded_chunk(in.chunk, in.tokens),
                       .step = 1});
}

void leaving_gradients_mma(const Context& ctx, const LeavingGradients& args) {
  const auto [B, T, H, P] = args.dy.shape<4>("dy: (B, T, H, P)");
  const ChunkStateInputs<Bf16> in{.x = pointer<Bf16>(args.dy),
                                  .B = pointer<Bf16>(args.C),
                                  .x_stride = args.dy.row_stride,
                                  .B_stride = args.C.row_stride,
                                  .tokens = T,
                                  .H = H,
                                  .P = P,
                                  .G = args.C.dim(2),
                                  .N = args.C.dim(3),
                                  .chunk = args.chunk,
                                  .M = num_chunks(T, args.chunk)};
  launch_states<true>(ctx, args.name, in, B,
                      {.state = pointer<Bf16>(args.doutgoing),
                       .decay = args.decay.as<float>(),
                       .weights = args.weights.as<float>(),
                       .initial = optional_pointer<float>(args.dfinal),
                       .final_state = nullptr,
                       .state_stride = args.doutgoing.row_stride,
                       .decay_stride = args.decay.row_stride,
                       .initial_stride = args.dfinal.row_stride,
                       .padded = padded_chunk(in.chunk, in.tokens),
                       .step = -1});
}

}  // namespace sluice::cuda
