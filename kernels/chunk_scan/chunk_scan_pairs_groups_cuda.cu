// chunk_scan's backward through pairs (see chunk_scan_pairs_cuda.cu), for chunks of up to 128
// tokens and N = 128, by products of warpgroups.
//
// The floor, at T 16384, H 64, P 64, N 128, Q 128: x, dy and dx once each, 402 MB, 0.134 ms at
// 3 TB/s. The elementwise work is some 100 instructions for 16 x 16 pairs: 0.03 ms if all four
// schedulers of a multiprocessor always have one to issue, which they have if warps do not wait for
// operands of products: so tiles go from shared memory to tensor cores by themselves.
//
// A block has a chunk, and each of its two warpgroups every second head, without waiting for the
// other: in 64 x 64 blocks of pairs, transposed, (s, t) = (0, 0), (0, 1), (1, 1). A warp has 16
// tokens s of each. dS is in registers, of each warpgroup's heads: 96 a thread. (Without branches
// between squares, for the sake of more chains at once, registers spill, and it is 1.7 times as
// slow.)
#include "kernels/chunk_scan/chunk_scan_pairs.cuh"
#include "kernels/device/panel_tile.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

constexpr int kChunk = 128, kState = 128;
constexpr int kSide = 64;  // of a block of pairs
constexpr int kGroups = 2;
constexpr int kThreads = kGroups * kWarpgroup;
constexpr int kWarps = kThreads / 32, kGroupWarps = 4;
constexpr int kStages = 2;
constexpr int kStrips = kChunk / kStrip;
constexpr int kSquares = square_of(kStrips, 0);
constexpr int kBlocks = 3;

using HeadTile = PanelTile<kChunk, kHeadDim>;
using BlockTile = PanelTile<kSide, kHeadDim>;

struct alignas(1024) Room {
  struct Head {
    Bf16 x[kChunk * kHeadDim], dy[kChunk * kHeadDim];
  } heads[kGroups][kStages];  // the first group's: B and C at the start and at the end
  Bf16 dx[kWarps][kStrip * kHeadDim];
  uint4 scores[kSquares * 32];  // S^T; in the end dS^T
  struct alignas(16) Steps {
    float cum[kChunk], dt[kChunk];
    float dcum[kChunk];  // what the incoming state gave
    float D;
  } steps[kGroups][kStages];
  float later[kGroups][kGroupWarps][kChunk];  // sum over a warp's s of S w dt g, for every t
  float ddt[kGroups][kChunk];
  float dD[kGroups][kGroupWarps];
  int first[kChunk];  // the first token that t sees
};
static_assert(sizeof(Room::heads) / kGroups == 2 * kChunk * kState * sizeof(Bf16));

// A warp's 16 tokens s in work.
struct PairsStrip {
  int index;                     // of the chunk's strips
  bool plain;                    // no document begins after its first token
  float middle;                  // cum at its last token, in powers of 2
  float cum[2], dt[2], late[2];  // of this lane's two rows; late: the decay to the last token
  float ddt[2] = {0, 0};

  __device__ PairsStrip(const Room::Steps& steps, const int* first, int size, int index)
      : index(index), plain(first[size - 1] <= index * kStrip) {
    middle = steps.cum[min(index * kStrip + kStrip, size) - 1] * kLog2e;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cum[half] = steps.cum[token(half)] * kLog2e;
      dt[half] = steps.dt[token(half)];
      late[half] = exp2_approx(fminf(middle - cum[half], 0.0f));
    }
  }
  __device__ int token(int half) const { return index * kStrip + Accumulator::row(2 * half); }
};

struct PairsBlock {
  Room& room;
  const ScanGradients& to;
  const ChunkPlace& place;
  int group = warpgroup_index();  // of warps
  int warp = warpgroup_warp();    // of the group's
  int thread = int(threadIdx.x) % kWarpgroup;
  int used = (place.size + kStrip - 1) / kStrip;  // strips that have tokens
  Accumulator dS[kBlocks][kSide / kMmaN];

  __device__ SharedTile<kState> factor(int which) const {
    return {&room.heads[0][0].x[0] + which * kChunk * kState};
  }
  __device__ void load_factors(const ScanInputs<Bf16>& in, int heads_group) const {
    const int64_t column = int64_t(heads_group) * kState;
    copy_tile_async<kChunk, kState, kThreads>(factor(0), in.B.row(place.row0) + column, in.B.stride,
                                              0, place.size);
    copy_tile_async<kChunk, kState, kThreads>(factor(1), in.C.row(place.row0) + column, in.C.stride,
                                              0, place.size);
    commit_copies();
  }

  // S^T, square by square.
  __device__ void start(const ScanInputs<Bf16>& in, int heads_group) {
    load_factors(in, heads_group);
    if (threadIdx.x < kChunk) {
      const int t = threadIdx.x;
      room.first[t] = t < place.size ? place.first_seen(t) : kChunk;
    }
    wait_copies<0>();
    __syncthreads();
    const SharedTile<kState> B = factor(0), C = factor(1);
    const int own = int(threadIdx.x) / 32;
#pragma unroll 1
    for (int i = 0; i < kStrips; ++i) {
#pragma unroll 1
      for (int j = 0; j <= i; ++j) {
        if (square_of(i, j) % kWarps != own) continue;
        Accumulator left, right;  // zeros beyond the chunk's tokens, as their B and C are
#pragma unroll
        for (int k = 0; k < kState; k += kMmaK) {
          const FragmentA rows = load_a(B, j * kStrip, k);
          const FragmentPairB c = load_b(C.from_row(i * kStrip), 0, k);
          mma(left, rows, c.halves[0]);
          mma(right, rows, c.halves[1]);
        }
        store_square(room.scores, square_of(i, j), fragment_a(left, right));
      }
    }
    __syncthreads();
  }

  // What the products g of square (i, strip) are weighed by: adds w dt g to dS; the result is S w
  // (to be multiplied by dt) as the left operand of dx. Beyond the chunk's tokens all products are
  // 0: decays there need only be finite.
  __device__ __forceinline__ FragmentA weigh(PairsStrip& strip, const Room::Steps& steps, int i,
                                             bool first, const Accumulator (&all)[kSide / kMmaN],
                                             Accumulator (&sums)[kSide / kMmaN], float& dD) {
    const int own = i % kGroupWarps * 2;  // the square's first tile
    FragmentA a = load_square(room.scores, square_of(i, strip.index));
    float w[2][4];  // of tile and value
    const int t0 = i * kStrip + Accumulator::column(0);
    if (strip.plain && i > strip.index) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const float2 cum = *reinterpret_cast<const float2*>(steps.cum + t0 + tile * kMmaN);
        const float early[2] = {exp2_approx(fminf(cum.x * kLog2e - strip.middle, 0.0f)),
                                exp2_approx(fminf(cum.y * kLog2e - strip.middle, 0.0f))};
#pragma unroll
        for (int v = 0; v < 4; ++v) w[tile][v] = early[v % 2] * strip.late[v / 2];
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const float2 cum = *reinterpret_cast<const float2*>(steps.cum + t0 + tile * kMmaN);
        const int2 seen = *reinterpret_cast<const int2*>(room.first + t0 + tile * kMmaN);
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int s = strip.token(v / 2), t = t0 + tile * kMmaN + v % 2;
          const float later = (v % 2 == 0 ? cum.x : cum.y) * kLog2e - strip.cum[v / 2];
          const bool sees = s <= t && s >= (v % 2 == 0 ? seen.x : seen.y);
          w[tile][v] = sees ? exp2_approx(later) : 0.0f;
          dD += s == t ? all[own + tile].values[v] : 0.0f;
        }
      }
    }
    float columns[4] = {0, 0, 0, 0};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t& word = a.words[2 * tile + half];
        const float2 score = unpack_bf16(word);
        const float left = w[tile][2 * half], right = w[tile][2 * half + 1];
        const float2 wg = {left * all[own + tile].values[2 * half],
                           right * all[own + tile].values[2 * half + 1]};
        const float2 share = {score.x * wg.x, score.y * wg.y};
        word = pack_bf16(score.x * left, score.y * right);
        strip.ddt[half] += share.x + share.y;
        columns[2 * tile] += share.x * strip.dt[half];
        columns[2 * tile + 1] += share.y * strip.dt[half];
        sums[own + tile].values[2 * half] += wg.x * strip.dt[half];
        sums[own + tile].values[2 * half + 1] += wg.y * strip.dt[half];
      }
    }
    const float later = sum_rows(columns);
    if (threadIdx.x % 8 < 4) {
      float& total = room.later[group][warp][i * kStrip + summed_column()];
      total = first ? later : total + later;
    }
    return a;
  }

  // dx of a strip, by way of shared memory to whole rows.
  __device__ void finish_strip(const PairsStrip& strip, const HeadTile& dy, float D,
                               const Accumulator (&sum)[kHeadTiles], Bf16* dx) const {
    const SharedTile<kHeadDim> staged{room.dx[int(threadIdx.x) / 32]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int s = strip.token(half);
      const float ddt = pair_sum(strip.ddt[half]);
      if (threadIdx.x % 4 == 0) room.ddt[group][s] = ddt;
#pragma unroll
      for (int p = 0; p < kHeadTiles; ++p) {
        const int column = p * kMmaN + Accumulator::column(0);
        const float2 skip = dy.pair(s, column);
        const float* const value = &sum[p].values[2 * half];
        *reinterpret_cast<uint32_t*>(staged.element(Accumulator::row(2 * half), column)) =
            pack_bf16(strip.dt[half] * value[0] + D * skip.x,
                      strip.dt[half] * value[1] + D * skip.y);
      }
    }
    __syncwarp();
    write_strip(staged, 0, dx, to.dx.stride, strip.index * kStrip, place.size);
    __syncwarp();
  }

  // One head; `dx` is its column of the chunk's first row.
  __device__ void pass(Room::Head& head, const Room::Steps& steps, Bf16* dx) {
    const HeadTile x{head.x}, dy{head.dy};
    float dD = 0;
#pragma unroll
    for (int s_block = 0; s_block < 2; ++s_block) {
      if (s_block * kSide >= place.size) continue;
      PairsStrip strip(steps, room.first, place.size, s_block * kGroupWarps + warp);
      Accumulator sum[kHeadTiles];
#pragma unroll
      for (int t_block = s_block; t_block < 2; ++t_block) {
        if (t_block * kSide >= place.size) continue;
        const BlockTile dy_block{head.dy + t_block * kSide * kHeadDim};
        Accumulator g[kSide / kMmaN];
        begin_sums(g);
        multiply_rows(g, x, s_block * kSide, dy_block);
        end_sums();
        wait_sums<0>(g);
        FragmentA weights[kSide / kMmaK];
#pragma unroll
        for (int j = 0; j < kSide / kStrip; ++j) {
          weights[j] = FragmentA{};
          if (s_block == t_block && j < warp) continue;
          weights[j] = weigh(strip, steps, t_block * kGroupWarps + j, s_block == 0, g,
                             dS[s_block + t_block], dD);
        }
        if constexpr (kHasWgmma) pin(weights);
        begin_sums(sum);
        add_product<kSide, kHeadDim>(sum, weights, dy_block);
        end_sums();
        wait_sums<0>(sum);
      }
      finish_strip(strip, dy, steps.D, sum, dx);
    }
    dD = warp_sum(dD);
    if (threadIdx.x % 32 == 0) room.dD[group][warp] = dD;
  }

  // After a barrier: the head's sums over warps.
  __device__ void sum_warps(const Room::Steps& steps, int head, float* partial_dD) const {
    const int t = thread;
    if (t < place.size) {
      float dcum = steps.dcum[t];
      const int last = min(t / kStrip, kGroupWarps - 1);
      for (int other = 0; other <= last; ++other) dcum += room.later[group][other][t];
      to.ddt.row(place.row0 + t)[head] = room.ddt[group][t];
      to.dcum.row(place.row0 + t)[head] = dcum - steps.dt[t] * room.ddt[group][t];
    }
    if (t > 0) return;
    float sum = 0;
    for (int other = 0; other < kGroupWarps; ++other) sum += room.dD[group][other];
    partial_dD[head] = sum;
  }

  // The sum of both groups' dS, as squares of bf16 in place of the scores.
  __device__ void gather() {
    float* const other = reinterpret_cast<float*>(&room.heads[1]) + thread;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kSide / kMmaN * 4; ++i) {
        if (group == 1) other[(block * 32 + i) * kWarpgroup] = dS[block][i / 4].values[i % 4];
      }
    }
    __syncthreads();
    if (group == 1) return;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int strip = block / 2 * kGroupWarps + warp, first = (block + 1) / 2 * kGroupWarps;
#pragma unroll
      for (int i = 0; i < kSide / kMmaN * 4; ++i)
        dS[block][i / 4].values[i % 4] += other[(block * 32 + i) * kWarpgroup];
#pragma unroll
      for (int j = 0; j < kSide / kStrip; ++j) {
        if (first + j < strip) continue;
        store_square(room.scores, square_of(first + j, strip),
                     fragment_a(dS[block][2 * j], dS[block][2 * j + 1]));
      }
    }
  }

  // dB and dC from dS, once all heads are in it.
  __device__ void finish(const ScanInputs<Bf16>& in, int heads_group, int split) {
    __syncthreads();
    load_factors(in, heads_group);
    gather();
    wait_copies<0>();
    __syncthreads();
    const SharedTile<kState> B = factor(0), C = factor(1);
    const int own = int(threadIdx.x) / 32;
    {
      Accumulator dB[kState / kMmaN];
      for (int i = own; i < used; ++i)
        add_rows<kState>(dB, load_square(room.scores, square_of(i, own)), C, i * kStrip);
      write_strip_sum(dB, to, to.partial_dB, to.dB, place, heads_group, split, own);
    }
    const int strip = kStrips - 1 - own;
    Accumulator dC[kState / kMmaN];
    for (int j = 0; j <= strip && strip < used; ++j) {
      const FragmentA square = transpose(load_square(room.scores, square_of(strip, j)));
      add_rows<kState>(dC, square, B, j * kStrip);
    }
    write_strip_sum(dC, to, to.partial_dC, to.dC, place, heads_group, split, strip);
  }
};

__global__ void __launch_bounds__(kThreads, 1)
    pairs_groups_kernel(const ScanInputs<Bf16> in, const ScanGradients to) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  BlockIndex index(blockIdx.x);
  const int split = index.take(to.splits);
  const HeadRange heads(in, index.take(in.groups), split, to.splits);
  const int64_t chunk_row = index.rest;
  const ChunkPlace place(in, chunk_row);
  PairsBlock block{room, to, place};
  block.start(in, heads.group);

  const int group = block.group, token = block.thread;
  const bool inside = token < place.size;
  const int64_t row = place.row0 + (inside ? token : 0);
  const PanelCopies<kChunk, kHeadDim, kWarpgroup> x(in.x.row(place.row0), in.x.stride, token);
  const PanelCopies<kChunk, kHeadDim, kWarpgroup> dy(to.dy.row(place.row0), to.dy.stride, token);
  const auto fetch = [&](int head, int stage) {
    Room::Steps& steps = room.steps[group][stage];
    x.copy(room.heads[group][stage].x, int64_t(head) * kHeadDim, place.size);
    dy.copy(room.heads[group][stage].dy, int64_t(head) * kHeadDim, place.size);
    copy_async_4(&steps.cum[token], in.cum.row(row) + head, inside);
    copy_async_4(&steps.dt[token], in.dt.row(row) + head, inside);
    copy_async_4(&steps.dcum[token], to.dcum.row(row) + head, inside && to.adds_dcum);
    if (token == 0) copy_async_4(&steps.D, in.D + head);
    commit_copies();
  };
  int stage = 0;
  if (heads.begin + group < heads.end) fetch(heads.begin + group, stage);
#pragma unroll 1
  for (int head = heads.begin + group; head < heads.end; head += kGroups) {
    wait_copies<0>();
    if constexpr (kHasWgmma) fence_shared_for_wgmma();
    warpgroup_barrier(group);
    if (head + kGroups < heads.end) fetch(head + kGroups, stage ^ 1);
    const Room::Steps& steps = room.steps[group][stage];
    block.pass(room.heads[group][stage], steps, to.dx.row(place.row0) + int64_t(head) * kHeadDim);
    warpgroup_barrier(group);
    block.sum_warps(steps, head, to.partial_dD.row(chunk_row));
    stage ^= 1;
  }
  // Racecheck goes by how many barriers a thread has met: both groups meet equally often.
  if (group > 0 && (heads.end - heads.begin) % kGroups != 0) {
    warpgroup_barrier(group);
    warpgroup_barrier(group);
  }
  block.finish(in, heads.group, split);
}

}  // namespace

bool pairs_by_groups(const ScanInputs<Bf16>& in) {
  return in.chunk <= kChunk && in.state_dim == kState && has_shared_bytes(sizeof(Room));
}

void pairs_backward_by_groups(const Context& ctx, const ScanInputs<Bf16>& in,
                              const ScanGradients& to) {
  launch(ctx, "chunk_scan_backward",
         {.blocks = unsigned(int64_t(in.chunk_rows) * in.groups * to.splits),
          .threads = kThreads,
          .shared_bytes = sizeof(Room)},
         pairs_groups_kernel, in, to);
}

}  // namespace sluice::cuda
