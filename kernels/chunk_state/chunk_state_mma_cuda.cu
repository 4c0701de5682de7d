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
// owns 64 x kColumns of one head's state in registers and walks over tiles of 64 tokens, three
// stages of cp.async deep: of one chunk, or with kPass of all chunks of the row. B is read once a
// head, from the L2 cache.
#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kRows = 64;  // of P
constexpr int kThreads = 128;
constexpr int kStages = 3;

struct StateArrays {
  float *state, *decay;  // with kPass the state is the incoming one
  const float* initial;  // may be null
  float* final_state;    // may be null
  int64_t state_stride, decay_stride, initial_stride, final_stride;
};

template <int kColumns>
struct alignas(128) Room {
  Bf16 x[kStages][kTokens * kRows];
  Bf16 B[kStages][kTokens * kColumns];
  // A token's numbers are copied and read by one thread, so its chunk's are kept once a token.
  float cum[kStages][kTokens], dt[kStages][kTokens], cum_last[kStages][kTokens];
  int32_t document[kStages][kTokens];
  float weights[2][kTokens];
  float decay[2];
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
struct Cursor {
  int64_t m;           // the chunk
  int64_t token;       // the first, of the row
  int64_t begin, end;  // tokens of the chunk

  __device__ Cursor(const ChunkStateInputs<Bf16>& in, int64_t m) { enter(in, m); }
  __device__ void enter(const ChunkStateInputs<Bf16>& in, int64_t chunk) {
    m = chunk;
    const ChunkSpan span(m, in.chunk, in.tokens);
    token = begin = span.begin;
    end = span.end;
  }
  __device__ void advance(const ChunkStateInputs<Bf16>& in) {
    token += kTokens;
    if (token >= end) enter(in, m + 1);
  }
};

template <int kColumns>
__device__ void copy_stage(const ChunkStateInputs<Bf16>& in, const Task& task, const Cursor& at,
                           Room<kColumns>& room, int stage) {
  const int64_t first = task.b * in.tokens;
  const int64_t row = first + at.token, end = first + at.end;
  copy_tile_async<kTokens, kRows, kThreads>(SharedTile<kRows>{room.x[stage]},
                                            in.x + task.h * in.P + task.p0, in.x_stride, row, end);
  copy_tile_async<kTokens, kColumns, kThreads>(SharedTile<kColumns>{room.B[stage]},
                                               in.B + task.h * in.G / in.H * in.N + task.n0,
                                               in.B_stride, row, end);
  const int t = threadIdx.x;
  if (t >= kTokens) return;
  const int64_t mine = std::min(row + t, end - 1);
  copy_async_4(&room.cum[stage][t], in.cum + mine * in.cum_stride + task.h);
  copy_async_4(&room.dt[stage][t], in.dt + mine * in.dt_stride + task.h);
  copy_async_4(&room.cum_last[stage][t], in.cum + (end - 1) * in.cum_stride + task.h);
  copy_async_4(&room.document[stage][t], in.doc_begin + task.b * in.doc_begin_stride + at.end - 1);
}

// By the threads that copied the tokens' numbers.
template <int kColumns>
__device__ void find_weights(const Cursor& at, Room<kColumns>& room, int stage, int parity) {
  const int t = threadIdx.x;
  if (t >= kTokens) return;
  const int64_t document = room.document[stage][t];
  const float last = room.cum_last[stage][t];
  const bool counts = at.token + t < at.end && at.token + t >= document;
  room.weights[parity][t] = counts ? expf(last - room.cum[stage][t]) * room.dt[stage][t] : 0.0f;
  if (t == 0) room.decay[parity] = document >= at.begin ? 0.0f : expf(last);
}

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

template <int kColumns>
struct StateTile {
  static constexpr int kCount = kColumns / kMmaN;
  Accumulator acc[kCount];

  __device__ void add_tile(const Room<kColumns>& room, int stage, int parity) {
    const SharedTile<kRows> x{const_cast<Bf16*>(room.x[stage])};
    const SharedTile<kColumns> B{const_cast<Bf16*>(room.B[stage])};
    const int row = int(threadIdx.x) / 32 * kMmaM;
#pragma unroll
    for (int k = 0; k < kTokens; k += kMmaK) {
      FragmentA a = load_a_transposed(x, row, k);
      scale_tokens(a, &room.weights[parity][k]);
#pragma unroll
      for (int n = 0; n < kCount; n += 2) {
        const FragmentPairB b = load_b_transposed(B, n * kMmaN, k);
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
  // `to` and `from` point at the block's part of a head's state, whose rows have N columns.
  __device__ void store(float* to, int64_t N) const {
    const int row = int(threadIdx.x) / 32 * kMmaM;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        float* const pair =
            to + (row + Accumulator::row(i)) * N + n * kMmaN + Accumulator::column(0);
        *reinterpret_cast<float2*>(pair) = {acc[n].values[i], acc[n].values[i + 1]};
      }
    }
  }
  __device__ void load(const float* from, int64_t N) {
    const int row = int(threadIdx.x) / 32 * kMmaM;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        acc[n].values[i] =
            from[(row + Accumulator::row(i)) * N + n * kMmaN + Accumulator::column(i)];
    }
  }
};

template <int kColumns, bool kPass>
__global__ void __launch_bounds__(kThreads, 4)
    states_kernel(ChunkStateInputs<Bf16> in, StateArrays out) {
  extern __shared__ __align__(128) unsigned char shared[];
  Room<kColumns>& room = *reinterpret_cast<Room<kColumns>*>(shared);
  const Task task = Task::of<kColumns, kPass>(in);
  const int64_t part = task.p0 * in.N + task.n0;  // of a head's state
  StateTile<kColumns> state;
  if (kPass && out.initial != nullptr)
    state.load(out.initial + (task.b * in.H + task.h) * out.initial_stride + part, in.N);

  Cursor ahead(in, task.first_chunk);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (ahead.m < task.end_chunk) {
      copy_stage(in, task, ahead, room, stage);
      ahead.advance(in);
    }
    commit_copies();
  }
  int stage = 0, parity = 0;
  for (Cursor at(in, task.first_chunk); at.m < task.end_chunk; at.advance(in)) {
    wait_copies<kStages - 2>();
    find_weights(at, room, stage, parity);
    __syncthreads();  // the stage has arrived; all are done with the one before
    if (ahead.m < task.end_chunk) {
      copy_stage(in, task, ahead, room, stage == 0 ? kStages - 1 : stage - 1);
      ahead.advance(in);
    }
    commit_copies();
    const int64_t chunk_row = task.b * in.M + at.m;
    float* const to = out.state + chunk_row * out.state_stride + task.h * in.P * in.N + part;
    if (at.token == at.begin) {
      if (kPass) {
        state.store(to, in.N);
        state.scale(room.decay[parity]);
      }
      if (part == 0 && threadIdx.x == 0)
        out.decay[chunk_row * out.decay_stride + task.h] = room.decay[parity];
    }
    state.add_tile(room, stage, parity);
    if (!kPass && at.token + kTokens >= at.end) state.store(to, in.N);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= 1;
  }
  if (kPass && out.final_state != nullptr)
    state.store(out.final_state + (task.b * in.H + task.h) * out.final_stride + part, in.N);
}

template <int kColumns, bool kPass>
void launch_states(const Context& ctx, const char* name, const ChunkStateInputs<Bf16>& in,
                   int64_t batch, const StateArrays& out) {
  const int64_t heads = batch * (kPass ? 1 : in.M) * in.H;
  const int64_t blocks = heads * (in.P / kRows) * (in.N / kColumns);
  launch(ctx, name,
         {.blocks = unsigned(blocks), .threads = kThreads, .shared_bytes = sizeof(Room<kColumns>)},
         states_kernel<kColumns, kPass>, in, out);
}

}  // namespace

bool chunk_states_fit(const ChunkStateForward& args, const StatePassingForward& passing) {
  return args.x.dtype == DType::bf16 && args.x.dim(3) % kRows == 0 && args.B.dim(3) % 64 == 0 &&
         rows_of_16_bytes(args.x, args.B, args.state, passing.initial, passing.final_state);
}

void chunk_state_forward_mma(const Context& ctx, const ChunkStateForward& args) {
  const auto in = chunk_state_inputs<Bf16>(args);
  launch_states<64, false>(ctx, "chunk_state_forward", in, args.x.dim(0),
                           {.state = args.state.as<float>(),
                            .decay = args.decay.as<float>(),
                            .state_stride = args.state.row_stride,
                            .decay_stride = args.decay.row_stride});
}

void entering_states_mma(const Context& ctx, const ChunkStateForward& args,
                         const StatePassingForward& passing) {
  const auto in = chunk_state_inputs<Bf16>(args);
  const int64_t batch = args.x.dim(0);
  const StateArrays out{.state = args.state.as<float>(),
                        .decay = args.decay.as<float>(),
                        .initial = optional_pointer<float>(passing.initial),
                        .final_state = optional_pointer<float>(passing.final_state),
                        .state_stride = args.state.row_stride,
                        .decay_stride = args.decay.row_stride,
                        .initial_stride = passing.initial.row_stride,
                        .final_stride = passing.final_state.row_stride};
  // Narrower blocks read x more often (from the L2 cache) but fill the machine with fewer heads.
  constexpr int64_t kFewBlocks = 2 * 132;
  if (batch * in.H * (in.P / kRows) * (in.N / 64) >= kFewBlocks) {
    launch_states<64, true>(ctx, "entering_states", in, batch, out);
  } else {
    launch_states<32, true>(ctx, "entering_states", in, batch, out);
  }
}

}  // namespace sluice::cuda
