// ssd_forward on tensor cores: a block walks a row in tiles of 64 tokens, with two or three heads
// of a group, each with its state in the registers of a warpgroup. For a tile, with e the decay
// from its beginning, w the decay to its end times dt and h the state before it:
//
//   y[t] = sum_{s <= t} (C[t] . B[s]) exp(cum[t] - cum[s]) dt[s] x[s] + e[t] h C[t] + D x[t]
//   h   <- decay h + sum_s w[s] x[s] B[s]^T
//
// The floor, at T 16384, H 64, P 64, N 128: x and y once each, 268 MB, 0.09 ms at 3 TB/s; 50 GFLOP,
// which is as much as 0.07 ms. Against the states first and the chunks then, x is read once and no
// state is written or read. B and C are read by every block from the cache, 0.27 GB. Tiles are half
// of what is best where states are written: a state costs nothing here, and pairs are fewer.
//
// A tile is a long chain of products and what they wait for, so heads must not wait for each other:
// a warpgroup of its own brings tiles and finds the weights of their tokens, and heads meet it at
// barriers of their stage, not each other.
//
// What is carried is f32; its rounded copy in shared memory is an operand of the next tile.
#include "kernels/chunk_scan/ssd_forward_cuda.h"

#include "kernels/chunk_scan/chunk_scan_tensor.cuh"
#include "kernels/chunk_state/state_tile.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/warp_roles.cuh"

namespace sluice::cuda {

namespace {

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
  SharedBarrier filled[kStages], emptied[kStages];
};

struct Arrays {
  ScanInputs<Bf16> in;  // without incoming states
  RowsOf<Bf16> y;
  RowsOf<const float> initial;  // data may be null
  RowsOf<float> final_state;    // data may be null
};

// What a block does.
struct Task {
  int64_t b;
  int group, head, heads;  // its group's number, its first head, how many it has

  template <int kHeads>
  __device__ static Task of(const ScanInputs<Bf16>& in) {
    BlockIndex index(blockIdx.x);
    const int of_group = in.group_heads();
    const int first = index.take((of_group + kHeads - 1) / kHeads) * kHeads;
    const int group = index.take(in.groups);
    return {index.rest, group, group * of_group + first, min(kHeads, of_group - first)};
  }
};

// A place among the stages, and the parity of how often they have been filled.
struct Place {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// The warps of a warpgroup that has come this far arrive.
__device__ inline void arrive(SharedBarrier& barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) barrier.arrive();
}

// Two tokens of a head, on their way to weights.
struct TokenPair {
  float cum[2], dt[2];
  float before;  // cum of the token before the tile, 0 where a chunk begins
  int first[2];

  // Of the tile that begins at `begin` of a row of the batch, maybe with a chunk.
  __device__ void load(const ScanInputs<Bf16>& in, int64_t b, int head, int64_t begin, int valid,
                       bool starts) {
    const int64_t row0 = b * in.tokens + begin;
    const int32_t* const doc_begin = in.doc_begin.row(b) + begin;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = min(2 * int(threadIdx.x % kWarp) + i, valid - 1);
      cum[i] = in.cum.row(row0 + t)[head] * kLog2e;
      dt[i] = in.dt.row(row0 + t)[head];
      first[i] = int(max(int64_t(-1), doc_begin[t] - begin));
    }
    before = starts ? 0.0f : in.cum.row(row0 - 1)[head] * kLog2e;
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

// The warpgroup that fills stages. Its warps have a head's weights each, the last one what tokens
// see.
template <int kHeads>
struct Supplier {
  const ScanInputs<Bf16>& in;
  const Task& task;
  Room<kHeads>& room;
  int warp = warpgroup_warp();
  PanelCopies<kTile, kN, kWarpgroup> B, C;
  PanelCopies<kTile, kP, kWarpgroup> x;

  __device__ Supplier(const ScanInputs<Bf16>& in, const Task& task, Room<kHeads>& room)
      : in(in),
        task(task),
        room(room),
        B(in.B.row(task.b * in.tokens) + task.group * kN, in.B.stride, thread()),
        C(in.C.row(task.b * in.tokens) + task.group * kN, in.C.stride, thread()),
        x(in.x.row(task.b * in.tokens) + task.head * kP, in.x.stride, thread()) {}
  __device__ static int thread() { return int(threadIdx.x) % kWarpgroup; }

  __device__ void fill(int stage, int64_t begin, bool starts) const {
    typename Room<kHeads>::Stage& to = room.stages[stage];
    const int valid = int(min(int64_t(kTile), in.tokens - begin));
    const int head = min(warp, task.heads - 1);
    TokenPair tokens;
    tokens.load(in, task.b, task.head + head, begin, valid, starts);
    if (valid == kTile) {
      B.copy_whole(to.B, begin * in.B.stride);
      C.copy_whole(to.C, begin * in.C.stride);
      for_heads([&](int h) { x.copy_whole(to.x[h], begin * in.x.stride + h * kP); });
    } else {
      B.copy(to.B, begin * in.B.stride, valid);
      C.copy(to.C, begin * in.C.stride, valid);
      for_heads([&](int h) { x.copy(to.x[h], begin * in.x.stride + h * kP, valid); });
    }
    if (warp < task.heads) tokens.store(room.weights[head][stage]);
    if (warp == kWarps - 1)
      reinterpret_cast<int2*>(room.first[stage])[threadIdx.x % kWarp] =
          make_int2(tokens.first[0], tokens.first[1]);
  }
  template <class Body>
  __device__ void for_heads(Body&& body) const {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h < task.heads) body(h);
    }
  }
  // A stage is handed over when the next one's tiles are on their way.
  __device__ void run() const {
    Place place;
    int last = 0;
    int64_t chunk = 0;  // where the next one begins
#pragma unroll 1
    for (int64_t begin = 0; begin < in.tokens; begin += kTile) {
      room.emptied[place.stage].wait(place.parity ^ 1);
      fill(place.stage, begin, begin == chunk);
      if (begin == chunk) chunk += in.chunk;
      commit_copies();
      if (begin > 0) hand_over<1>(last);
      last = place.stage;
      place.advance();
    }
    hand_over<0>(last);
  }
  template <int kPending>
  __device__ void hand_over(int stage) const {
    wait_copies<kPending>();
    if constexpr (kHasWgmma) fence_shared_for_wgmma();
    arrive(room.filled[stage]);
  }
};

// A warp's 16 tokens t of a tile. (Rows beyond the row's end may come out as anything: nobody reads
// them.)
struct Strip {
  int index;
  float cum[2];  // of this lane's two rows
  int first[2];

  __device__ Strip(const Weights& weights, const int* first_seen, int index) : index(index) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cum[half] = weights.cum[row(half)];
      first[half] = first_seen[row(half)];
    }
  }
  __device__ int row(int half) const { return index * kStrip + Accumulator::row(2 * half); }

  // Of the scores with strip j, two tiles of 8 tokens s. Strips after its own have weights of 0, as
  // a branch would keep the compiler from mixing strips' chains.
  __device__ FragmentA weigh(const Weights& weights, int j,
                             const Accumulator (&scores)[kTile / kMmaN]) const {
    FragmentA a;
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int s = j * kStrip + Accumulator::column(0) + column * kMmaN;
      const float2 source = *reinterpret_cast<const float2*>(weights.source + s);
      const float* const score = scores[2 * j + column].values;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = row(half), from = first[half];
        const float left = exp2_approx(cum[half] - source.x);
        const float right = exp2_approx(cum[half] - source.y);
        a.words[2 * column + half] =
            pack_bf16(s <= t && s >= from ? score[2 * half] * left : 0.0f,
                      s + 1 <= t && s + 1 >= from ? score[2 * half + 1] * right : 0.0f);
      }
    }
    return a;
  }
};

// A head's warpgroup.
template <int kHeads>
struct Walker {
  Room<kHeads>& room;
  int group;
  float D;
  int warp = warpgroup_warp();
  StateTile<kN> state;

  // Of the state, for the products of the next tile.
  __device__ void store_state() const {
    state.store(State{room.state[group]});
    if constexpr (kHasWgmma) fence_shared_for_wgmma();
    warpgroup_barrier(group);
  }
  // x^T times w, as the left operand of what the tile adds.
  __device__ void load_weighted(FragmentA (&a)[kTile / kMmaK], const Tokens& x,
                                const float* leaving) const {
#pragma unroll
    for (int k = 0; k < kTile / kMmaK; ++k) {
      a[k] = load_a_transposed(x, warp * kMmaM, k * kMmaK);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 w =
            *reinterpret_cast<const float2*>(leaving + k * kMmaK + i / 2 * 8 + threadIdx.x % 4 * 2);
        const float2 value = unpack_bf16(a[k].words[i]);
        a[k].words[i] = pack_bf16(w.x * value.x, w.y * value.y);
      }
    }
  }

  // One tile; `y` is its first row of the head.
  __device__ void pass(int stage, int size, Bf16* y, int64_t stride) {
    typename Room<kHeads>::Stage& tile = room.stages[stage];
    const Weights& weights = room.weights[group][stage];
    const Factors B{tile.B}, C{tile.C};
    const Tokens x{tile.x[group]};
    Accumulator scores[kTile / kMmaN], sum[kP / kMmaN];
    begin_sums(scores);
    multiply_rows(scores, C, 0, B);
    end_sums();
    begin_sums(sum);
    multiply_rows(sum, C, 0, State{room.state[group]});
    end_sums();
    const Strip strip(weights, room.first[stage], warp);
    wait_sums<1>(scores);
    FragmentA pairs[kTile / kMmaK], added[kTile / kMmaK];
#pragma unroll
    for (int j = 0; j < kTile / kStrip; ++j) pairs[j] = strip.weigh(weights, j, scores);
    load_weighted(added, x, weights.leaving);
    wait_sums<0>(sum);
    scale(strip, weights, sum);
    if constexpr (kHasWgmma) {
      pin(pairs);
      pin(added);
    }
    begin_sums(sum);
    begin_sums(state.acc);
    add_product<kTile, kP>(sum, pairs, x);
    end_sums();
    add_product<kTile, kN>(state.acc, added, B);
    end_sums();
    wait_sums<1>(sum);
    warpgroup_barrier(group);  // all have read x and the state
    write(strip, x, sum, size, y, stride);
    wait_sums<0>(state.acc);
    arrive(room.emptied[stage]);
    store_state();
  }
  __device__ void scale(const Strip& strip, const Weights& weights,
                        Accumulator (&sum)[kP / kMmaN]) {
    const float entering[2] = {weights.entering[strip.row(0)], weights.entering[strip.row(1)]};
#pragma unroll
    for (Accumulator& part : sum) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part.values[i] *= entering[i / 2];
    }
    state.scale(weights.decay);
  }

  // y += D x, in x's place to whole rows.
  __device__ void write(const Strip& strip, const Tokens& x, const Accumulator (&sum)[kP / kMmaN],
                        int size, Bf16* y, int64_t stride) const {
#pragma unroll
    for (int p = 0; p < kP / kMmaN; p += 2) {
      FragmentA a = load_a(x, strip.index * kStrip, p * kMmaN);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 skip = unpack_bf16(a.words[i]);
        const float* const value = &sum[p + i / 2].values[i % 2 * 2];
        a.words[i] = pack_bf16(value[0] + D * skip.x, value[1] + D * skip.y);
      }
      store_a(x, strip.index * kStrip, p * kMmaN, a);
    }
    __syncwarp();
    write_strip(SharedTile<kP>{x.data}, strip.index * kStrip, y, stride, strip.index * kStrip,
                size);
  }

  __device__ void run(const Arrays& args, const Task& task) {
    const ScanInputs<Bf16>& in = args.in;
    const int head = task.head + group;
    const int64_t state_row = task.b * in.heads + head;
    if (args.initial.data != nullptr) state.load(args.initial.row(state_row), kN);
    store_state();
    Bf16* y = args.y.row(task.b * in.tokens) + int64_t(head) * kP;
    Place place;
#pragma unroll 1
    for (int64_t begin = 0; begin < in.tokens; begin += kTile) {
      room.filled[place.stage].wait(place.parity);
      pass(place.stage, int(min(int64_t(kTile), in.tokens - begin)), y, args.y.stride);
      y += kTile * args.y.stride;
      place.advance();
    }
    if (args.final_state.data != nullptr) state.store(args.final_state.row(state_row), int64_t(kN));
  }
};

// Of a multiprocessor's 512 registers for a thread of each warpgroup (504 for three of them).
template <int kHeads>
constexpr int kSupplierRegisters = kHeads == 2 ? 40 : 32;
template <int kHeads>
constexpr int kWalkerRegisters = kHeads == 2 ? 232 : 160;

template <int kHeads>
__global__ void __launch_bounds__((kHeads + 1) * kWarpgroup, 1) walk_kernel(const Arrays args) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Room<kHeads>& room = *reinterpret_cast<Room<kHeads>*>(shared);
  const Task task = Task::of<kHeads>(args.in);
  const int group = warpgroup_index();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      room.filled[stage].init(kWarps);
      room.emptied[stage].init(task.heads * kWarps);
    }
  }
  __syncthreads();
  if (group == kHeads) {
    if constexpr (kHasWgmma) fewer_registers<kSupplierRegisters<kHeads>>();
    Supplier<kHeads>(args.in, task, room).run();
  } else {
    if constexpr (kHasWgmma) more_registers<kWalkerRegisters<kHeads>>();
    if (group < task.heads)
      Walker<kHeads>{room, group, args.in.D[task.head + group]}.run(args, task);
  }
}

template <int kHeads>
void launch_walks(const Context& ctx, const Arrays& arrays, int64_t batch) {
  const ScanInputs<Bf16>& in = arrays.in;
  launch(ctx, "ssd_forward",
         {.blocks = unsigned(batch * in.groups * ceil_div(in.group_heads(), kHeads)),
          .threads = (kHeads + 1) * kWarpgroup,
          .shared_bytes = sizeof(Room<kHeads>)},
         walk_kernel<kHeads>, arrays);
}

}  // namespace

bool ssd_forward_has_room() { return has_shared_bytes(sizeof(Room<kMostWalkHeads>)); }

void ssd_forward(const Context& ctx, const SsdForward& args) {
  const Arrays arrays{
      .in = {.x = rows_of<Bf16>(args.x),
             .B = rows_of<Bf16>(args.B),
             .C = rows_of<Bf16>(args.C),
             .incoming = {nullptr, 0},
             .dt = rows_of<float>(args.dt),
             .cum = rows_of<float>(args.cum),
             .doc_begin = rows_of<int32_t>(args.doc_begin),
             .D = pointer<float>(args.D),
             .tokens = args.x.dim(1),
             .chunk = args.chunk,
             .chunks_per_row = 0,
             .chunk_rows = 0,
             .heads = int(args.x.dim(2)),
             .groups = int(args.B.dim(2)),
             .head_dim = kP,
             .state_dim = kN},
      .y = rows_of<Bf16>(args.y),
      .initial = {optional_pointer<float>(args.initial), args.initial.row_stride},
      .final_state = {optional_pointer<float>(args.final_state), args.final_state.row_stride}};
  const int64_t heads = walk_schedule(args.x.dim(0), args.x.dim(2), args.B.dim(2)).heads;
  if (heads == 2) return launch_walks<2>(ctx, arrays, args.x.dim(0));
  launch_walks<3>(ctx, arrays, args.x.dim(0));
}

}  // namespace sluice::cuda
