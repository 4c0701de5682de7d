// chunk_scan's forward (see chunk_scan_tensor_cuda.cu), for chunks of up to 128 tokens and N = 128,
// by products of warpgroups.
//
// The floor, at T 16384, H 64, P 64, N 128, Q 128: x, y and the states once each, 402 MB, 0.134 ms
// at 3 TB/s; 34 GFLOP, a third of that.
//
// A block has a chunk, and each of its two warpgroups every second head, without waiting for the
// other: in 64 x 64 blocks of pairs (t, s) = (0, 0), (1, 0), (1, 1). A warp has 16 tokens t of
// each.
#include "kernels/chunk_scan/chunk_scan_tensor.cuh"
#include "kernels/device/panel_tile.cuh"

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

using Factors = PanelTile<kChunk, kState>;
using HeadTile = PanelTile<kChunk, kHeadDim>;
using StateTile = PanelTile<kHeadDim, kState>;
using BlockTile = PanelTile<kSide, kHeadDim>;

struct alignas(1024) Room {
  Bf16 C[kChunk * kState];
  struct Head {
    Bf16 x[kChunk * kHeadDim], incoming[kHeadDim * kState];
  } heads[kGroups][kStages];  // at the start: B
  Bf16 y[kWarps][kStrip * kHeadDim];
  uint4 scores[kSquares * 32];
  struct alignas(16) Steps {
    float cum[kChunk], dt[kChunk];
    float D;
  } steps[kGroups][kStages];
  int first[kChunk];  // the first token that t sees, -1 if it sees the incoming state too
};

// A warp's 16 tokens t in work.
struct Strip {
  int index;          // of the chunk's strips
  int last_first;     // the first token that its last one sees
  float before;       // cum ahead of it, in powers of 2
  float cum[2];       // of this lane's two rows
  float early[2];     // the decay from there to them
  float entering[2];  // the decay from the chunk's beginning, 0 where the state is not seen
  int first[2];

  __device__ Strip(const Room& room, const Room::Steps& steps, int size, int index)
      : index(index), last_first(room.first[min(index * kStrip + kStrip, size) - 1]) {
    before = index > 0 ? steps.cum[index * kStrip - 1] * kLog2e : 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cum[half] = steps.cum[row(half)] * kLog2e;
      first[half] = room.first[row(half)];
      early[half] = exp2_approx(cum[half] - before);
      entering[half] = first[half] < 0 ? exp2_approx(cum[half]) : 0.0f;
    }
  }
  __device__ int row(int half) const { return index * kStrip + Accumulator::row(2 * half); }

  // Those of the tokens of strip j. Where all rows see all of them, a decay is a product of two
  // factors, one of t and one of s, both at most 1. (Rows beyond the chunk may come out as
  // anything: nobody reads them.)
  __device__ FragmentA weights(const Room& room, const Room::Steps& steps, int j) const {
    FragmentA a = load_square(room.scores, square_of(index, j));
    const bool far = j < index && last_first <= j * kStrip;
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int s = j * kStrip + Accumulator::column(0) + column * 8;
      const float2 cum_s = *reinterpret_cast<const float2*>(steps.cum + s);
      const float2 dt = *reinterpret_cast<const float2*>(steps.dt + s);
      float2 late;
      if (far) {
        late.x = exp2_approx(before - cum_s.x * kLog2e) * dt.x;
        late.y = exp2_approx(before - cum_s.y * kLog2e) * dt.y;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t& word = a.words[2 * column + half];
        const float2 score = unpack_bf16(word);
        float2 w;
        if (far) {
          w = {late.x * early[half], late.y * early[half]};
        } else {
          const int t = row(half), from = first[half];
          w.x = exp2_approx(cum[half] - cum_s.x * kLog2e) * dt.x;
          w.y = exp2_approx(cum[half] - cum_s.y * kLog2e) * dt.y;
          if (s > t || s < from) w.x = 0;
          if (s + 1 > t || s + 1 < from) w.y = 0;
        }
        word = pack_bf16(score.x * w.x, score.y * w.y);
      }
    }
    return a;
  }
};

struct ForwardBlock {
  Room& room;
  const ChunkPlace& place;
  int group = warpgroup_index();  // of warps
  int warp = warpgroup_warp();    // of the group's

  __device__ void start(const ScanInputs<Bf16>& in, int heads_group) const {
    const int64_t column = int64_t(heads_group) * kState;
    Bf16* const room_B = reinterpret_cast<Bf16*>(room.heads);
    using Copies = PanelCopies<kChunk, kState, kThreads>;
    Copies(in.B.row(place.row0) + column, in.B.stride).copy(room_B, 0, place.size);
    Copies(in.C.row(place.row0) + column, in.C.stride).copy(room.C, 0, place.size);
    commit_copies();
    if (threadIdx.x < kChunk) {
      const int t = threadIdx.x;
      room.first[t] = t >= place.size ? kChunk : (place.enters(t) ? -1 : place.first_seen(t));
    }
    wait_tiles<0>();
    const Factors B{room_B}, C{room.C};
    const int own = int(threadIdx.x) / 32;
#pragma unroll 1
    for (int i = 0; i < kStrips; ++i) {  // zeros beyond the chunk's tokens, as their B and C are
#pragma unroll 1
      for (int j = 0; j <= i; ++j) {
        if (square_of(i, j) % kWarps != own) continue;
        Accumulator left, right;
#pragma unroll
        for (int k = 0; k < kState; k += kMmaK) {
          const FragmentA rows = load_a(C, i * kStrip, k);
          const FragmentPairB b = load_b(B, j * kStrip, k);
          mma(left, rows, b.halves[0]);
          mma(right, rows, b.halves[1]);
        }
        store_square(room.scores, square_of(i, j), fragment_a(left, right));
      }
    }
    __syncthreads();
  }

  // One head; `y` is its column of the chunk's first row.
  __device__ void scan(Room::Head& head, const Room::Steps& steps, Bf16* y, int64_t stride) const {
#pragma unroll
    for (int t_block = 0; t_block < 2; ++t_block) {
      if (t_block * kSide >= place.size) continue;
      Accumulator sum[kHeadTiles];
      begin_sums(sum);
      multiply_rows(sum, Factors{room.C}, t_block * kSide, StateTile{head.incoming});
      end_sums();
      const Strip strip(room, steps, place.size, t_block * kGroupWarps + warp);
      FragmentA weights[kSide / kMmaK];
#pragma unroll
      for (int s_block = 0; s_block <= t_block; ++s_block) {
#pragma unroll
        for (int j = 0; j < kSide / kStrip; ++j) {
          weights[j] = FragmentA{};
          if (s_block == t_block && j > warp) continue;
          weights[j] = strip.weights(room, steps, s_block * kGroupWarps + j);
        }
        wait_sums<0>(sum);
        if (s_block == 0) {
#pragma unroll
          for (Accumulator& tile : sum) {
#pragma unroll
            for (int i = 0; i < 4; ++i) tile.values[i] *= strip.entering[i / 2];
          }
        }
        if constexpr (kHasWgmma) pin(weights);
        begin_sums(sum);
        add_product<kSide, kHeadDim>(sum, weights, BlockTile{head.x + s_block * kSide * kHeadDim});
        end_sums();
        wait_sums<0>(sum);
      }
      write(strip, HeadTile{head.x}, steps.D, sum, y, stride);
    }
  }

  // y += D x, through shared memory to whole rows.
  __device__ void write(const Strip& strip, const HeadTile& x, float D,
                        const Accumulator (&sum)[kHeadTiles], Bf16* y, int64_t stride) const {
    const SharedTile<kHeadDim> staged{room.y[int(threadIdx.x) / 32]};
#pragma unroll
    for (int p = 0; p < kHeadTiles; ++p) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = p * kMmaN + Accumulator::column(0);
        const float2 skip = x.pair(strip.row(half), column);
        const float* const value = &sum[p].values[2 * half];
        *reinterpret_cast<uint32_t*>(staged.element(Accumulator::row(2 * half), column)) =
            pack_bf16(value[0] + D * skip.x, value[1] + D * skip.y);
      }
    }
    __syncwarp();
    write_strip(staged, 0, y, stride, strip.index * kStrip, place.size);
    __syncwarp();
  }
};

__global__ void __launch_bounds__(kThreads, 1)
    forward_groups_kernel(const ScanInputs<Bf16> in, const RowsOf<Bf16> y, const int splits) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  BlockIndex index(blockIdx.x);
  const int split = index.take(splits);
  const HeadRange heads(in, index.take(in.groups), split, splits);
  const int64_t chunk_row = index.rest;
  const ChunkPlace place(in, chunk_row);
  const ForwardBlock block{room, place};
  block.start(in, heads.group);

  const int group = block.group, token = int(threadIdx.x) % kWarpgroup;
  const bool inside = token < place.size;
  const int64_t row = place.row0 + (inside ? token : 0);
  const PanelCopies<kChunk, kHeadDim, kWarpgroup> x(in.x.row(place.row0), in.x.stride, token);
  const PanelCopies<kHeadDim, kState, kWarpgroup> incoming(in.incoming.row(chunk_row), kState,
                                                           token);
  const auto fetch = [&](int head, int stage) {
    Room::Steps& steps = room.steps[group][stage];
    const int64_t column = int64_t(head) * kHeadDim;
    x.copy(room.heads[group][stage].x, column, place.size);
    incoming.copy(room.heads[group][stage].incoming, column * kState, kHeadDim);
    copy_async_4(&steps.cum[token], in.cum.row(row) + head, inside);
    copy_async_4(&steps.dt[token], in.dt.row(row) + head, inside);
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
    block.scan(room.heads[group][stage], room.steps[group][stage],
               y.row(place.row0) + int64_t(head) * kHeadDim, y.stride);
    stage ^= 1;
  }
}

}  // namespace

bool scan_by_groups(const ScanInputs<Bf16>& in) {
  return in.chunk <= kChunk && in.state_dim == kState && has_shared_bytes(sizeof(Room));
}

void scan_forward_by_groups(const Context& ctx, const ScanInputs<Bf16>& in, RowsOf<Bf16> y) {
  const int64_t chunk_groups = int64_t(in.chunk_rows) * in.groups;
  const int splits = int(head_splits(chunk_groups, in.group_heads(), kMultiprocessors));
  launch(ctx, "chunk_scan_forward",
         {.blocks = unsigned(chunk_groups * splits),
          .threads = kThreads,
          .shared_bytes = sizeof(Room)},
         forward_groups_kernel, in, y, splits);
}

}  // namespace sluice::cuda
