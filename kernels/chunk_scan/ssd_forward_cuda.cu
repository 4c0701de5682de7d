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
// A tile is a long chain of products and what they wait for, so heads must not wait for each other,
// nor for tiles: the copy engine brings them, other warps find the weights of their tokens, and
// heads meet those at barriers of a stage, not each other. (Copied by a warpgroup, tiles came too
// late: 0.36 ms for H 80.)
//
// What is carried is f32; its rounded copy in shared memory is an operand of the next tile.
//
// Where rows and heads are too few to fill the machine, runs of a row's chunks are walked side by
// side; a fold of all of them (chunk_state_mma_cuda.cu) finds first what each begins with.
#include "kernels/chunk_scan/ssd_forward_supply.cuh"
#include "kernels/chunk_state/state_tile.cuh"

namespace sluice::cuda {
namespace {

using namespace ssd_walk;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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

  // Of the state, for the products of the next tile. What was written to x's place is behind the
  // fence too, where the copy engine is to write.
  __device__ void store_state() const {
    state.store(State{room.state[group]});
    fence_shared_for_wgmma();
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
    pin(pairs);
    pin(added);
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
    store_state();
    room.emptied[stage].arrive();
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
    const int64_t state_row = task.row_run * in.heads + head;
    if (args.initial.data != nullptr) state.load(args.initial.row(state_row), kN);
    store_state();
    Bf16* y = args.y.row(task.b * in.tokens + task.begin) + int64_t(head) * kP;
    RingCursor<kStages> cursor;
#pragma unroll 1
    for (int64_t begin = task.begin; begin < task.end; begin += kTile) {
      room.filled[cursor.stage].wait(cursor.parity);
      pass(cursor.stage, int(min(int64_t(kTile), task.end - begin)), y, args.y.stride);
      y += kTile * args.y.stride;
      cursor.advance();
    }
    if (args.final_state.data != nullptr) state.store(args.final_state.row(state_row), int64_t(kN));
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kHeads>
constexpr int kThreads = (kHeads + 1) * kWarpgroup;

template <int kHeads>
__global__ void __launch_bounds__(kThreadsIfWhole<kThreads<kHeads>>, 1)
    walk_kernel(const __grid_constant__ Arrays args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  Room<kHeads>& room = *reinterpret_cast<Room<kHeads>*>(shared);
  const Task task = Task::of<kHeads>(args);
  const int group = warpgroup_index();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      room.filled[stage].init((task.heads + 1) * kWarp);
      room.emptied[stage].init(task.heads * kWarpgroup);
    }
    fence_barriers();
  }
  __syncthreads();
  if (group == kHeads) {
    fewer_registers<24>();
    Supplier<kHeads>{args, task, room}.run();
  } else {
    more_registers<kHeads == 2 ? 240 : 160>();
    if (group < task.heads)
      Walker<kHeads>{room, group, args.in.D[task.head + group]}.run(args, task);
  }
#endif
}

template <int kHeads>
void launch_walks(const Context& ctx, const Arrays& arrays, int64_t batch) {
  const ScanInputs<Bf16>& in = arrays.in;
  launch(ctx, "ssd_forward",
         {.blocks = unsigned(batch * arrays.runs * in.groups * ceil_div(in.group_heads(), kHeads)),
          .threads = kThreads<kHeads>,
          .shared_bytes = sizeof(Room<kHeads>)},
         walk_kernel<kHeads>, arrays);
}

}  // namespace

bool ssd_forward_has_room() {
  return is_whole(walk_kernel<kMostWalkHeads>, kThreads<kMostWalkHeads>) &&
         has_shared_bytes(sizeof(Room<kMostWalkHeads>));
}

void ssd_forward(const Context& ctx, const SsdForward& args) {
  const int64_t batch = args.x.dim(0), T = args.x.dim(1);
  const auto map = [&](const ConstTensorView& view) {
    const int64_t stride = view.row_stride;
    return tensor_map(pointer<Bf16>(view), view.dim(2) * view.dim(3), T, batch, stride, T * stride,
                      kTile);
  };
  const WalkSchedule schedule = walk_schedule(args.x.dims, args.B.dim(2), args.chunk);
  const bool one_run = schedule.runs == 1;
  const Arrays arrays{.x = map(args.x),
                      .B = map(args.B),
                      .C = map(args.C),
                      .in = {.x = rows_of<Bf16>(args.x),
                             .B = rows_of<Bf16>(args.B),
                             .C = rows_of<Bf16>(args.C),
                             .incoming = {nullptr, 0},
                             .dt = rows_of<float>(args.dt),
                             .cum = rows_of<float>(args.cum),
                             .doc_begin = rows_of<int32_t>(args.doc_begin),
                             .D = pointer<float>(args.D),
                             .tokens = T,
                             .chunk = args.chunk,
                             .chunks_per_row = 0,
                             .chunk_rows = 0,
                             .heads = int(args.x.dim(2)),
                             .groups = int(args.B.dim(2)),
                             .head_dim = kP,
                             .state_dim = kN},
                      .y = rows_of<Bf16>(args.y),
                      .initial = {optional_pointer<float>(args.initial), args.initial.row_stride},
                      .final_state = {one_run ? optional_pointer<float>(args.final_state) : nullptr,
                                      args.final_state.row_stride},
                      .run = schedule.chunks * args.chunk,
                      .runs = schedule.runs};
  if (schedule.heads == 2) return launch_walks<2>(ctx, arrays, batch);
  launch_walks<3>(ctx, arrays, batch);
}

}  // namespace sluice::cuda
