// ssd_forward on tensor cores: a block walks a row in tiles of 64 tokens, with two heads of a
// group, each with its state in the registers of a warpgroup. For a tile, with e the decay from its
// beginning, w the decay to its end times dt and h the state before it:
//
//   y[t] = sum_{s <= t} (C[t] . B[s]) exp(cum[t] - cum[s]) dt[s] x[s] + e[t] h C[t] + D x[t]
//   h   <- decay h + sum_s w[s] x[s] B[s]^T
//
// The floor, at T 16384, H 64, P 64, N 128: x and y once each, 268 MB, 0.09 ms at 3 TB/s; 50 GFLOP,
// which is as much as 0.07 ms. Against the states first and the chunks then, x is read once and no
// state is written or read. B and C are read by every block from the cache, 0.27 GB. Tiles are half
// of what is best where states are written: a state costs nothing here, and pairs are fewer.
//
// What is carried is f32; its rounded copy in shared memory is an operand of the next tile.
#include "kernels/chunk_scan/ssd_forward_cuda.h"

#include "kernels/chunk_scan/chunk_scan_tensor.cuh"
#include "kernels/chunk_state/state_tile.cuh"

namespace sluice::cuda {

namespace {

constexpr int kTile = int(kWalkTile), kGroups = int(kWalkHeads);
constexpr int kThreads = kGroups * kWarpgroup;
constexpr int kP = kHeadDim, kN = 128;
constexpr int kStages = 3;

using Factors = PanelTile<kTile, kN>;  // B, C
using Tokens = PanelTile<kTile, kP>;   // x, y
using State = PanelTile<kP, kN>;

struct alignas(1024) Room {
  struct Stage {
    Bf16 B[kTile * kN], C[kTile * kN];
    Bf16 x[kGroups][kTile * kP];  // becomes y
  } stages[kStages];
  Bf16 state[kGroups][kP * kN];
  struct alignas(16) Steps {
    float cum[kTile], dt[kTile];
    float before;  // cum of the token before the tile, 0 where a chunk begins
  } steps[kGroups][kStages];
  int doc_begin[kStages][kTile];
};

struct Arrays {
  ScanInputs<Bf16> in;  // without incoming states
  RowsOf<Bf16> y;
  RowsOf<const float> initial;  // data may be null
  RowsOf<float> final_state;    // data may be null
};

// What a warpgroup does.
struct Task {
  int64_t b;
  int head, heads_group;

  __device__ static Task of(const ScanInputs<Bf16>& in, int group) {
    BlockIndex index(blockIdx.x);
    const int head = index.take(in.heads / kGroups) * kGroups + group;
    return {index.rest, head, head / in.group_heads()};
  }
};

// Tiles on their way to shared memory.
struct Copies {
  PanelCopies<kTile, kN, kThreads> B, C;
  PanelCopies<kTile, kP, kWarpgroup> x;
  RowsOf<const float> cum, dt;  // of the head, from the row's first token on
  const int32_t* doc_begin;
  int64_t tokens, chunk;
  int group, thread;  // of the warpgroup

  __device__ Copies(const ScanInputs<Bf16>& in, const Task& task, int group)
      : B(in.B.row(task.b * in.tokens) + task.heads_group * kN, in.B.stride),
        C(in.C.row(task.b * in.tokens) + task.heads_group * kN, in.C.stride),
        x(in.x.row(task.b * in.tokens) + task.head * kP, in.x.stride,
          int(threadIdx.x) % kWarpgroup),
        cum{in.cum.row(task.b * in.tokens) + task.head, in.cum.stride},
        dt{in.dt.row(task.b * in.tokens) + task.head, in.dt.stride},
        doc_begin(in.doc_begin.row(task.b)),
        tokens(in.tokens),
        chunk(in.chunk),
        group(group),
        thread(int(threadIdx.x) % kWarpgroup) {}

  __device__ void copy(const ScanInputs<Bf16>& in, Room& room, int stage, int64_t begin) const {
    Room::Stage& to = room.stages[stage];
    Room::Steps& steps = room.steps[group][stage];
    const int valid = int(min(int64_t(kTile), tokens - begin));
    B.copy(to.B, begin * in.B.stride, valid);
    C.copy(to.C, begin * in.C.stride, valid);
    x.copy(to.x[group], begin * in.x.stride, valid);
    const int t = thread % kTile;
    const int64_t token = begin + (t < valid ? t : 0);
    if (thread < kTile) {
      copy_async_4(&steps.cum[t], cum.row(token), t < valid);
      if (group == 0) copy_async_4(&room.doc_begin[stage][t], doc_begin + token, t < valid);
    } else {
      copy_async_4(&steps.dt[t], dt.row(token), t < valid);
      const bool goes_on = begin % chunk != 0;
      if (t == 0) copy_async_4(&steps.before, cum.row(goes_on ? begin - 1 : begin), goes_on);
    }
  }
};

// A warp's 16 tokens t of a tile. (Rows beyond the row's end may come out as anything: nobody reads
// them.)
struct Strip {
  int index;
  float cum[2];       // of this lane's two rows, in powers of 2
  float entering[2];  // e, 0 where the state is not seen
  int first[2];       // the first token of the tile that they see, -1: the state too

  __device__ Strip(const Room::Steps& steps, const int* doc_begin, int64_t begin, int index)
      : index(index) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cum[half] = steps.cum[row(half)] * kLog2e;
      first[half] = seen(doc_begin[row(half)], begin);
      entering[half] = first[half] < 0 ? exp2_approx(cum[half] - steps.before * kLog2e) : 0.0f;
    }
  }
  __device__ static int seen(int doc_begin, int64_t begin) {
    return int(max(int64_t(-1), doc_begin - begin));
  }
  __device__ int row(int half) const { return index * kStrip + Accumulator::row(2 * half); }

  // Of the scores with strip j, two tiles of 8 tokens s. Strips after its own have weights of 0, as
  // a branch would keep the compiler from mixing strips' chains.
  __device__ FragmentA weigh(const Room::Steps& steps, int j,
                             const Accumulator (&scores)[kTile / kMmaN]) const {
    FragmentA a;
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int s = j * kStrip + Accumulator::column(0) + column * kMmaN;
      const float2 cum_s = *reinterpret_cast<const float2*>(steps.cum + s);
      const float2 dt = *reinterpret_cast<const float2*>(steps.dt + s);
      const float* const score = scores[2 * j + column].values;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = row(half), from = first[half];
        const float left = exp2_approx(cum[half] - cum_s.x * kLog2e) * dt.x;
        const float right = exp2_approx(cum[half] - cum_s.y * kLog2e) * dt.y;
        a.words[2 * column + half] =
            pack_bf16(s <= t && s >= from ? score[2 * half] * left : 0.0f,
                      s + 1 <= t && s + 1 >= from ? score[2 * half + 1] * right : 0.0f);
      }
    }
    return a;
  }
};

struct WalkBlock {
  Room& room;
  int group = warpgroup_index();
  int warp = warpgroup_warp();
  StateTile<kN> state;

  // x^T times w, as the left operand of what the tile adds; `last` is the tile's last token.
  __device__ void load_weighted(FragmentA (&a)[kTile / kMmaK], const Tokens& x,
                                const Room::Steps& steps, int last, int last_first) const {
    const float end = steps.cum[last] * kLog2e;
#pragma unroll
    for (int k = 0; k < kTile / kMmaK; ++k) {
      a[k] = load_a_transposed(x, warp * kMmaM, k * kMmaK);
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int s = k * kMmaK + column * 8 + threadIdx.x % 4 * 2;
        const float2 cum = *reinterpret_cast<const float2*>(steps.cum + s);
        const float2 dt = *reinterpret_cast<const float2*>(steps.dt + s);
        const float left = s >= last_first ? exp2_approx(end - cum.x * kLog2e) * dt.x : 0.0f;
        const float right = s + 1 >= last_first ? exp2_approx(end - cum.y * kLog2e) * dt.y : 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 value = unpack_bf16(a[k].words[2 * column + half]);
          a[k].words[2 * column + half] = pack_bf16(left * value.x, right * value.y);
        }
      }
    }
  }

  // One tile; `y` is its first row of the head.
  __device__ void pass(int stage, int64_t begin, int size, float D, Bf16* y, int64_t stride) {
    Room::Stage& tile = room.stages[stage];
    const Room::Steps& steps = room.steps[group][stage];
    const int* const doc_begin = room.doc_begin[stage];
    const Factors B{tile.B}, C{tile.C};
    const Tokens x{tile.x[group]};
    Accumulator scores[kTile / kMmaN], sum[kP / kMmaN];
    begin_sums(scores);
    begin_sums(sum);
    multiply_rows(scores, C, 0, B);
    multiply_rows(sum, C, 0, State{room.state[group]});
    end_sums();
    const int last_first = Strip::seen(doc_begin[size - 1], begin);
    const Strip strip(steps, doc_begin, begin, warp);
    FragmentA added[kTile / kMmaK];
    load_weighted(added, x, steps, size - 1, last_first);
    wait_sums<0>(scores);
    wait_sums<0>(sum);
    FragmentA weights[kTile / kMmaK];
#pragma unroll
    for (int j = 0; j < kTile / kStrip; ++j) weights[j] = strip.weigh(steps, j, scores);
#pragma unroll
    for (Accumulator& part : sum) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part.values[i] *= strip.entering[i / 2];
    }
    const float decay = exp2_approx((steps.cum[size - 1] - steps.before) * kLog2e);
    state.scale(last_first < 0 ? decay : 0.0f);
    if constexpr (kHasWgmma) {
      pin(weights);
      pin(added);
    }
    begin_sums(sum);
    begin_sums(state.acc);
    add_product<kTile, kP>(sum, weights, x);
    add_product<kTile, kN>(state.acc, added, B);
    end_sums();
    wait_sums<0>(sum);
    wait_sums<0>(state.acc);
    warpgroup_barrier(group);  // all products have read x and the state
    state.store(State{room.state[group]});
    write(strip, x, sum, size, D, y, stride);
  }

  // y += D x, in x's place to whole rows.
  __device__ void write(const Strip& strip, const Tokens& x, const Accumulator (&sum)[kP / kMmaN],
                        int size, float D, Bf16* y, int64_t stride) const {
#pragma unroll
    for (int p = 0; p < kP / kMmaN; ++p) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t* const place = reinterpret_cast<uint32_t*>(
            x.element(strip.row(half), p * kMmaN + Accumulator::column(0)));
        const float2 skip = unpack_bf16(*place);
        const float* const value = &sum[p].values[2 * half];
        *place = pack_bf16(value[0] + D * skip.x, value[1] + D * skip.y);
      }
    }
    __syncwarp();
    write_strip(SharedTile<kP>{x.data}, strip.index * kStrip, y, stride, strip.index * kStrip,
                size);
  }
};

__global__ void __launch_bounds__(kThreads, 1) walk_kernel(const Arrays args) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const ScanInputs<Bf16>& in = args.in;
  WalkBlock block{room};
  const int group = block.group;
  const Task task = Task::of(in, group);
  const int64_t state_row = task.b * in.heads + task.head;
  if (args.initial.data != nullptr) block.state.load(args.initial.row(state_row), kN);
  block.state.store(State{room.state[group]});
  const float D = in.D[task.head];
  Bf16* const y = args.y.row(task.b * in.tokens) + int64_t(task.head) * kP;

  const Copies copies(in, task, group);
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage * kTile < in.tokens) copies.copy(in, room, stage, stage * kTile);
    commit_copies();
  }
  int stage = 0;
#pragma unroll 1
  for (int64_t begin = 0; begin < in.tokens; begin += kTile) {
    wait_tiles<kStages - 2>();  // the tile has arrived; all are done with the one before
    const int64_t next = begin + (kStages - 1) * kTile;
    if (next < in.tokens) copies.copy(in, room, (stage + kStages - 1) % kStages, next);
    commit_copies();
    const int size = int(min(int64_t(kTile), in.tokens - begin));
    block.pass(stage, begin, size, D, y + begin * args.y.stride, args.y.stride);
    stage = (stage + 1) % kStages;
  }
  if (args.final_state.data != nullptr)
    block.state.store(args.final_state.row(state_row), int64_t(kN));
}

}  // namespace

bool ssd_forward_has_room() { return has_shared_bytes(sizeof(Room)); }

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
  launch(ctx, "ssd_forward",
         {.blocks = unsigned(args.x.dim(0) * args.x.dim(2) / kWalkHeads),
          .threads = kThreads,
          .shared_bytes = sizeof(Room)},
         walk_kernel, arrays);
}

}  // namespace sluice::cuda
