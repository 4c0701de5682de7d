// chunk_scan's backward on tensor cores, through the pairs of tokens of a chunk. For a head, with
// decays w[t,s] = exp(cum[t] - cum[s]) and S = C B^T, for s <= t of one document:
//
//   g[t,s] = dy[t] . x[s];   dx[s] = dt[s] sum_t S w dy[t] + D dy[s];   dD = sum_t g[t,t]
//   dS[t,s] += w dt[s] g, over heads;   ddt[s] = sum_t S w g
//   dcum[t] += S w dt[s] g, dcum[s] -= the same;   at last dC = dS B, dB = dS^T C
//
// The floor, at T 16384, H 64, P 64, N 128, Q 256: x, dy and dx once each, 402 MB, 0.134 ms at
// 3 TB/s; 37 GFLOP. A block has a whole chunk: S as bf16 in shared memory, dS as f32 in registers
// over all of the block's heads (a sum over heads, so that the products with B and C, of width N,
// come once), the next x and dy on their way.
//
// All squares are transposed: a warp's strips are 16 tokens s, with x as the left operand, against
// all t from s on. So g comes out as the left operand of dx, and the sums over t stay in a warp.
// A warp has a strip from the chunk's start and one from its end: 17 squares of 16 (9 of 8).
//
// Decays of squares beside the diagonal are a product of two factors, of t and of s, around the
// strip's last token; both are at most 1. A square has 16 exponentials, not 256; only at the
// diagonal, and where a document ends in or after the strip, has it one for every pair.
#include "kernels/chunk_scan/chunk_scan_pairs.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

template <int kChunk, int kState>
struct PairsShared {
  static constexpr int kStrips = kChunk / kStrip;
  static constexpr int kWarps = kStrips / 2;
  static constexpr int kSquares = square_of(kStrips, 0);

  // At the start and at the end this holds B and then C.
  alignas(128) Bf16 dy[2][kChunk * kHeadDim];
  alignas(128) Bf16 x[2][kChunk * kHeadDim];  // a strip becomes dx once its warp has read it
  uint4 scores[kSquares * 32];                // S^T; in the end dS^T
  float cum[2][kChunk];
  float dt[2][kChunk];
  float dcum[2][kChunk];  // what the incoming state gave
  float D[2];
  float later[kWarps][kChunk];  // sum over the s of a warp of S w dt g, for every t
  float ddt[kChunk];
  float dD[kWarps];
  int first[kChunk];  // the first token that t sees
};

// sums[slot] += a and b, without an index that is not known to the compiler.
template <int kBegin, int kEnd, int kSlots>
__device__ __forceinline__ void add_to_slot(Accumulator (&sums)[kSlots][2], int slot,
                                            const Accumulator& a, const Accumulator& b) {
  if constexpr (kEnd - kBegin == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[kBegin][0].values[i] += a.values[i];
      sums[kBegin][1].values[i] += b.values[i];
    }
  } else {
    constexpr int kMiddle = (kBegin + kEnd) / 2;
    if (slot < kMiddle)
      add_to_slot<kBegin, kMiddle>(sums, slot, a, b);
    else
      add_to_slot<kMiddle, kEnd>(sums, slot, a, b);
  }
}

struct Square {
  Accumulator tiles[2];
};

// A strip of 16 tokens s in work.
struct PairsStrip {
  int index;
  bool first_of_warp;
  bool plain;                    // no document begins after its first token
  float middle;                  // cum at its last token, in powers of 2
  float cum[2], dt[2], late[2];  // of this lane's two rows; late: the decay to the last token
  float ddt[2] = {0, 0};
  FragmentA x[kHeadSteps];
  Accumulator dx[kHeadTiles];

  __device__ int token(int half) const { return index * kStrip + Accumulator::row(2 * half); }
};

template <int kChunk, int kState>
struct PairsBlock {
  using Shared = PairsShared<kChunk, kState>;
  static constexpr int kStrips = Shared::kStrips, kWarps = Shared::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSlots = kStrips + 1;  // squares of a warp
  static constexpr int kStateTiles = kState / kMmaN, kStateSteps = kState / kMmaK;
  static_assert(kThreads == kChunk);

  Shared& shared;
  const ScanGradients& to;
  const ChunkPlace& place;
  int warp = int(threadIdx.x) / 32;
  int used = (place.size + kStrip - 1) / kStrip;  // strips that have tokens
  Accumulator dS[kSlots][2];

  __device__ int strip_of(int own) const { return own == 0 ? warp : kStrips - 1 - warp; }
  // The warp's squares: first those of its first strip, t from the chunk's end on down.
  __device__ int slot_of(int own, int i) const {
    return (own == 0 ? 0 : kStrips - warp) + kStrips - 1 - i;
  }

  __device__ void load_factors(const ScanInputs<Bf16>& in, int group) const {
    Bf16* const all = reinterpret_cast<Bf16*>(&shared);
    const int64_t column = int64_t(group) * kState;
    copy_tile_async<kChunk, kState, kThreads>(
        SharedTile<kState>{all}, in.B.row(place.row0) + column, in.B.stride, 0, place.size);
    copy_tile_async<kChunk, kState, kThreads>(SharedTile<kState>{all + kChunk * kState},
                                              in.C.row(place.row0) + column, in.C.stride, 0,
                                              place.size);
    commit_copies();
  }

  __device__ void start(const ScanInputs<Bf16>& in, int group) {
    load_factors(in, group);
    const int t = threadIdx.x;
    shared.first[t] = t < place.size ? place.first_seen(t) : kChunk;
    wait_copies<0>();
    __syncthreads();
    Bf16* const all = reinterpret_cast<Bf16*>(&shared);
    const SharedTile<kState> B{all}, C{all + kChunk * kState};
    for (int own = 0; own < 2; ++own) {
      const int j = strip_of(own);
      FragmentA rows[kStateSteps];
#pragma unroll
      for (int k = 0; k < kStateSteps; ++k) rows[k] = load_a(B, j * kStrip, k * kMmaK);
      for (int i = j; i < used; ++i) {
        Accumulator left, right;
#pragma unroll
        for (int k = 0; k < kStateSteps; ++k) {
          const FragmentPairB c = load_b(C.from_row(i * kStrip), 0, k * kMmaK);
          mma(left, rows[k], c.halves[0]);
          mma(right, rows[k], c.halves[1]);
        }
        store_square(shared.scores, square_of(i, j), fragment_a(left, right));
      }
    }
    __syncthreads();
  }

  __device__ PairsStrip begin_strip(int buffer, int own) const {
    PairsStrip strip;
    strip.index = strip_of(own);
    strip.first_of_warp = own == 0;
    strip.plain = shared.first[place.size - 1] <= strip.index * kStrip;
    const float* const cum = shared.cum[buffer];
    strip.middle = cum[min(strip.index * kStrip + kStrip, place.size) - 1] * kLog2e;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int s = strip.token(half);
      strip.cum[half] = cum[s] * kLog2e;
      strip.dt[half] = shared.dt[buffer][s];
      strip.late[half] = exp2_approx(fminf(strip.middle - strip.cum[half], 0.0f));
    }
    const SharedTile<kHeadDim> x{shared.x[buffer]};
#pragma unroll
    for (int k = 0; k < kHeadSteps; ++k) strip.x[k] = load_a(x, strip.index * kStrip, k * kMmaK);
    return strip;
  }

  // g of square (i, strip).
  __device__ Square products(const PairsStrip& strip, const SharedTile<kHeadDim>& dy, int i) const {
    Square g;
#pragma unroll
    for (int k = 0; k < kHeadSteps; ++k) {
      const FragmentPairB columns = load_b(dy.from_row(i * kStrip), 0, k * kMmaK);
      mma(g.tiles[0], strip.x[k], columns.halves[0]);
      mma(g.tiles[1], strip.x[k], columns.halves[1]);
    }
    return g;
  }

  // What the products of square (i, strip) are weighed by, in place: g becomes w dt g, and the
  // result is S w (to be multiplied by dt) as the left operand of dx. Beyond the chunk's tokens all
  // products are 0: decays there need only be finite.
  template <bool kProduct>
  __device__ __forceinline__ FragmentA weigh(PairsStrip& strip, int buffer, int i, Square& g,
                                             float& dD) {
    FragmentA a = load_square(shared.scores, square_of(i, strip.index));
    float columns[4] = {0, 0, 0, 0};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int t = i * kStrip + tile * kMmaN + Accumulator::column(0);
      const float2 cum = *reinterpret_cast<const float2*>(shared.cum[buffer] + t);
      float2 early;
      int2 first;
      if constexpr (kProduct) {
        early.x = exp2_approx(fminf(cum.x * kLog2e - strip.middle, 0.0f));
        early.y = exp2_approx(fminf(cum.y * kLog2e - strip.middle, 0.0f));
      } else {
        first = *reinterpret_cast<const int2*>(shared.first + t);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const value = &g.tiles[tile].values[2 * half];
        float2 w;
        float factor = strip.dt[half];
        if constexpr (kProduct) {
          w = early;
          factor *= strip.late[half];
        } else {
          const int s = strip.token(half);
          const float before = strip.cum[half];
          w.x = s <= t && s >= first.x ? exp2_approx(cum.x * kLog2e - before) : 0.0f;
          w.y = s <= t + 1 && s >= first.y ? exp2_approx(cum.y * kLog2e - before) : 0.0f;
          dD += s == t ? value[0] : 0.0f;
          dD += s == t + 1 ? value[1] : 0.0f;
        }
        uint32_t& word = a.words[2 * tile + half];
        const float2 score = unpack_bf16(word);
        const float2 wg = {w.x * value[0], w.y * value[1]};
        const float2 share = {score.x * wg.x, score.y * wg.y};
        word = pack_bf16(score.x * w.x, score.y * w.y);
        strip.ddt[half] += share.x + share.y;
        columns[2 * tile] += share.x * factor;
        columns[2 * tile + 1] += share.y * factor;
        value[0] = wg.x * factor;
        value[1] = wg.y * factor;
      }
    }
    const float later = sum_rows(columns);
    if (threadIdx.x % 8 < 4) {
      float& sum = shared.later[warp][i * kStrip + summed_column()];
      sum = strip.first_of_warp ? later : sum + later;
    }
    return a;
  }

  // After the squares beside the diagonal: what all of them lack is the factor of s.
  __device__ void come_to_diagonal(PairsStrip& strip) const {
    if (!strip.plain) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      strip.ddt[half] *= strip.late[half];
#pragma unroll
      for (Accumulator& tile : strip.dx) {
        tile.values[2 * half] *= strip.late[half];
        tile.values[2 * half + 1] *= strip.late[half];
      }
    }
  }

  __device__ void finish_strip(const PairsStrip& strip, int buffer, float D, Bf16* dx) const {
    const SharedTile<kHeadDim> dy{shared.dy[buffer] + opaque_zero()},
        staged{shared.x[buffer] + opaque_zero()};
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int s = strip.token(half);
      const float ddt = pair_sum(strip.ddt[half]);
      if (threadIdx.x % 4 == 0) shared.ddt[s] = ddt;
#pragma unroll
      for (int p = 0; p < kHeadTiles; ++p) {
        const int column = p * kMmaN + Accumulator::column(0);
        const float2 skip = unpack_bf16(*reinterpret_cast<const uint32_t*>(dy.element(s, column)));
        const float* const value = &strip.dx[p].values[2 * half];
        *reinterpret_cast<uint32_t*>(staged.element(s, column)) = pack_bf16(
            strip.dt[half] * value[0] + D * skip.x, strip.dt[half] * value[1] + D * skip.y);
      }
    }
    __syncwarp();
    write_strip(staged, strip.index * kStrip, dx, to.dx.stride, strip.index * kStrip, place.size);
  }

  // One head; `dx` is its column of the chunk's first row.
  __device__ void pass(int buffer, Bf16* dx) {
    const SharedTile<kHeadDim> dy{shared.dy[buffer]};
    float dD = 0;
#pragma unroll 1
    for (int own = 0; own < 2; ++own) {
      if (strip_of(own) >= used) continue;
      PairsStrip strip = begin_strip(buffer, own);
      Square next = products(strip, dy, used - 1);
#pragma unroll 1
      for (int i = used - 1; i >= strip.index; --i) {
        Square g = next;
        if (i > strip.index) next = products(strip, dy, i - 1);
        if (i == strip.index) come_to_diagonal(strip);
        const FragmentA weights = strip.plain && i > strip.index
                                      ? weigh<true>(strip, buffer, i, g, dD)
                                      : weigh<false>(strip, buffer, i, g, dD);
#pragma unroll
        for (int p = 0; p < kHeadSteps; ++p) {
          const FragmentPairB columns = load_b_transposed(dy.from_row(i * kStrip), p * kMmaK, 0);
          mma(strip.dx[2 * p], weights, columns.halves[0]);
          mma(strip.dx[2 * p + 1], weights, columns.halves[1]);
        }
        add_to_slot<0, kSlots>(dS, slot_of(own, i), g.tiles[0], g.tiles[1]);
      }
      finish_strip(strip, buffer, shared.D[buffer], dx);
    }
    dD = warp_sum(dD);
    if (threadIdx.x % 32 == 0) shared.dD[warp] = dD;
  }

  // After a barrier: the head's sums over warps.
  __device__ void sum_warps(int buffer, int head, float* partial_dD) const {
    const int t = threadIdx.x;
    if (t < place.size) {
      float dcum = shared.dcum[buffer][t];
      for (int other = 0; other < kWarps && other * kStrip <= t; ++other)
        dcum += shared.later[other][t];
      to.ddt.row(place.row0 + t)[head] = shared.ddt[t];
      to.dcum.row(place.row0 + t)[head] = dcum - shared.dt[buffer][t] * shared.ddt[t];
    }
    if (t > 0) return;
    float sum = 0;
    for (int other = 0; other < kWarps; ++other) sum += shared.dD[other];
    partial_dD[head] = sum;
  }

  // dB and dC from dS, once all heads are in it.
  __device__ void finish(const ScanInputs<Bf16>& in, int group, int split) {
    __syncthreads();
    load_factors(in, group);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int own = slot < kStrips - warp ? 0 : 1;
      const int i = kStrips - 1 - slot + (own == 0 ? 0 : kStrips - warp);
      store_square(shared.scores, square_of(i, strip_of(own)),
                   fragment_a(dS[slot][0], dS[slot][1]));
    }
    wait_copies<0>();
    __syncthreads();
    Bf16* const all = reinterpret_cast<Bf16*>(&shared);
    const SharedTile<kState> B{all}, C{all + kChunk * kState};
#pragma unroll 1
    for (int own = 0; own < 2; ++own) {
      const int strip = strip_of(own);
      Accumulator dB[kStateTiles];
      for (int i = strip; i < used; ++i)
        add_rows(dB, load_square(shared.scores, square_of(i, strip)), C, i * kStrip);
      write_strip_sum(dB, to, to.partial_dB, to.dB, place, group, split, strip);
      Accumulator dC[kStateTiles];
      for (int j = 0; j <= strip && strip < used; ++j)
        add_rows(dC, transpose(load_square(shared.scores, square_of(strip, j))), B, j * kStrip);
      write_strip_sum(dC, to, to.partial_dC, to.dC, place, group, split, strip);
    }
  }
};

template <int kChunk, int kState>
__global__ void __launch_bounds__(kChunk, kChunk > 128 ? 1 : 2)
    pairs_kernel(const ScanInputs<Bf16> in, const ScanGradients to) {
  extern __shared__ __align__(128) char room[];
  auto& shared = *reinterpret_cast<PairsShared<kChunk, kState>*>(room);
  BlockIndex index(blockIdx.x);
  const int split = index.take(to.splits);
  const HeadRange heads(in, index.take(in.groups), split, to.splits);
  const int64_t chunk_row = index.rest;
  const ChunkPlace place(in, chunk_row);
  PairsBlock<kChunk, kState> block{shared, to, place};
  block.start(in, heads.group);

  const int token = threadIdx.x;
  const bool inside = token < place.size;
  const int64_t row = place.row0 + (inside ? token : 0);
  const auto fetch = [&](int head) {
    const int buffer = (head - heads.begin) % 2;
    const int64_t column = int64_t(head) * kHeadDim;
    copy_tile_async<kChunk, kHeadDim, kChunk>(SharedTile<kHeadDim>{shared.dy[buffer]},
                                              to.dy.row(place.row0) + column, to.dy.stride, 0,
                                              place.size);
    copy_tile_async<kChunk, kHeadDim, kChunk>(SharedTile<kHeadDim>{shared.x[buffer]},
                                              in.x.row(place.row0) + column, in.x.stride, 0,
                                              place.size);
    copy_async_4(&shared.cum[buffer][token], in.cum.row(row) + head, inside);
    copy_async_4(&shared.dt[buffer][token], in.dt.row(row) + head, inside);
    copy_async_4(&shared.dcum[buffer][token], to.dcum.row(row) + head, inside && to.adds_dcum);
    if (token == 0) copy_async_4(&shared.D[buffer], in.D + head);
    commit_copies();
  };
  const auto settle = [&] {
    wait_copies<0>();
    __syncthreads();
  };
  fetch(heads.begin);
  settle();
  for (int head = heads.begin; head < heads.end; ++head) {
    const int buffer = (head - heads.begin) % 2;
    if (head + 1 < heads.end) fetch(head + 1);
    block.pass(buffer, to.dx.row(place.row0) + int64_t(head) * kHeadDim);
    __syncthreads();
    block.sum_warps(buffer, head, to.partial_dD.row(chunk_row));
    if (head + 1 < heads.end) settle();
  }
  block.finish(in, heads.group, split);
}

}  // namespace

size_t pairs_backward_shared(const ScanInputs<Bf16>& in) {
  size_t bytes = 0;
  dispatch_scan_shape(in.chunk, in.state_dim, [&]<int kChunk, int kState>() {
    bytes = sizeof(PairsShared<kChunk, kState>);
  });
  return bytes;
}

void pairs_backward(const Context& ctx, const ScanInputs<Bf16>& in, const ScanGradients& to) {
  if (pairs_by_groups(in)) return pairs_backward_by_groups(ctx, in, to);
  dispatch_scan_shape(in.chunk, in.state_dim, [&]<int kChunk, int kState>() {
    launch(ctx, "chunk_scan_backward",
           {.blocks = unsigned(int64_t(in.chunk_rows) * in.groups * to.splits),
            .threads = unsigned(kChunk),
            .shared_bytes = sizeof(PairsShared<kChunk, kState>)},
           pairs_kernel<kChunk, kState>, in, to);
  });
}

}  // namespace sluice::cuda
