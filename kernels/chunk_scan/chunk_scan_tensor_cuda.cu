// chunk_scan's forward on tensor cores.
//
// The floor, at T 16384, H 64, P 64, N 128, Q 256: x, y and the states once each, 336 MB, 0.112
// ms at 3 TB/s; 35 GFLOP, 0.06 ms at what mma.sync reaches. So a block reads each x and each state
// once (it has whole chunks and walks over heads), the scores C B^T are formed once a block and not
// once a head, and the next head is on its way while one is worked on.
//
// A warp owns a strip of 16 tokens; its C stays in its registers. Exponentials are the other
// thing there is much of: where a whole strip lies in the chunk's first document, its decays from
// the 64-token blocks before its own are a product of two factors, one of t and one of s, both at
// most 1. Only the block at the diagonal has one exponential for every pair.
#include "kernels/chunk_scan/chunk_scan_tensor.cuh"

namespace sluice::cuda {

namespace {

constexpr int kBlock = 64;  // tokens with decays of their own
constexpr int kBlockSteps = kBlock / kStrip;

template <int kChunk, int kState>
struct ForwardShared {
  static constexpr int kStrips = kChunk / kStrip;  // and warps
  static constexpr int kThreads = kStrips * 32;
  static constexpr int kLateBlocks = kChunk / kBlock - 1;
  static constexpr int kSquares = square_of(kStrips, 0);

  // At the start this holds B and then C.
  alignas(128) Bf16 x[2][kChunk * kHeadDim];
  alignas(128) Bf16 incoming[2][kHeadDim * kState];  // (P, N)
  alignas(128) Bf16 y[kStrips][kStrip * kHeadDim];
  uint4 scores[kSquares * 32];
  struct Steps {
    float cum[kChunk];  // in powers of 2
    float dt[kChunk];
    // dt times the decay from s to the end of each 64-token block but the last
    float late[kLateBlocks][kChunk];
    float D;
  } steps;
  float next_cum[kChunk];
  float next_dt[kChunk];
  float next_D;
  int first[kChunk];  // the first token that t sees, -1 if it sees the incoming state too
};

// A warp's strip: 16 tokens t against all s up to them.
template <int kChunk, int kState>
struct Strip {
  static constexpr int kStateSteps = kState / kMmaK;
  using Shared = ForwardShared<kChunk, kState>;
  using Steps = typename Shared::Steps;

  int index = -1;       // -1: beyond the chunk's tokens
  int far_steps = 0;    // strips of s whose decays are products
  bool enters = false;  // with far_steps > 0: whether all rows see the incoming state
  int first[2];         // of the two rows of this lane
  FragmentA C[kStateSteps];
  Accumulator y[kHeadTiles];
  float cum[2], entering[2];

  __device__ int row(int half) const { return index * kStrip + Accumulator::row(2 * half); }

  __device__ void start(const Shared& shared, const SharedTile<kState>& all_C, int strip,
                        int size) {
    if (strip * kStrip >= size) return;
    index = strip;
    const int last_first = shared.first[min(strip * kStrip + kStrip, size) - 1];
    far_steps = last_first <= 0 ? strip / kBlockSteps * kBlockSteps : 0;
    enters = last_first < 0;
    for (int half = 0; half < 2; ++half) first[half] = shared.first[row(half)];
#pragma unroll
    for (int k = 0; k < kStateSteps; ++k) C[k] = load_a(all_C, strip * kStrip, k * kMmaK);
  }
  // Decays of the new head; y, so far C h, is scaled by what of it does not depend on the row.
  __device__ void enter(const Steps& steps) {
    float begin = 0;
    if (far_steps > 0) {
      begin = steps.cum[far_steps * kStrip - 1];
      const float factor = enters ? exp2_approx(begin) : 0.0f;
#pragma unroll
      for (Accumulator& tile : y)
        for (float& value : tile.values) value *= factor;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cum[half] = steps.cum[row(half)];
      const bool sees = far_steps > 0 || first[half] < 0;
      entering[half] = sees ? exp2_approx(cum[half] - begin) : 0.0f;
    }
  }
  __device__ void scale_rows() {
#pragma unroll
    for (Accumulator& tile : y)
      for (int i = 0; i < 4; ++i) tile.values[i] *= entering[i / 2];
  }
  // The weights of step k < far_steps, without the rows' factors, as an operand.
  __device__ FragmentA far_weights(const Shared& shared, const Steps& steps, int k) const {
    FragmentA a = load_square(shared.scores, square_of(index, k));
    const float* const late =
        steps.late[far_steps / kBlockSteps - 1] + k * kStrip + Accumulator::column(0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 score = unpack_bf16(a.words[i]);
      const float2 factor = *reinterpret_cast<const float2*>(late + i / 2 * 8);
      a.words[i] = pack_bf16(score.x * factor.x, score.y * factor.y);
    }
    return a;
  }
  // The weights of any other step.
  __device__ FragmentA weights(const Shared& shared, const Steps& steps, int k) const {
    FragmentA a = load_square(shared.scores, square_of(index, k));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int s = k * kStrip + Accumulator::column(0) + i / 2 * 8;
      const int t = row(i % 2), from = first[i % 2];
      const float2 score = unpack_bf16(a.words[i]);
      const float2 cum_s = *reinterpret_cast<const float2*>(steps.cum + s);
      const float2 dt = *reinterpret_cast<const float2*>(steps.dt + s);
      const float x = score.x * exp2_approx(cum[i % 2] - cum_s.x) * dt.x;
      const float y = score.y * exp2_approx(cum[i % 2] - cum_s.y) * dt.y;
      a.words[i] =
          pack_bf16(s <= t && s >= from ? x : 0.0f, s + 1 <= t && s + 1 >= from ? y : 0.0f);
    }
    return a;
  }
};

template <int kChunk, int kState>
struct ForwardBlock {
  using Shared = ForwardShared<kChunk, kState>;
  using Steps = typename Shared::Steps;
  static constexpr int kThreads = Shared::kThreads;
  static constexpr int kStateSteps = kState / kMmaK;

  Shared& shared;
  int warp = int(threadIdx.x) / 32;
  Strip<kChunk, kState> strip;

  __device__ explicit ForwardBlock(Shared& shared) : shared(shared) {}

  // The work grows with the strip. The warps 4 apart share a scheduler: each has as much.
  __device__ int strip_of_warp() const {
    return warp / 4 % 2 == 0 ? warp : warp / 4 * 4 + 3 - warp % 4;
  }

  // The squares of scores C B^T of the warp's strip.
  __device__ void score(const SharedTile<kState>& B) {
    for (int j = 0; j <= strip.index; ++j) {
      Accumulator left, right;
#pragma unroll
      for (int k = 0; k < kStateSteps; ++k) {
        const FragmentPairB b = load_b(B.from_row(j * kStrip), 0, k * kMmaK);
        mma(left, strip.C[k], b.halves[0]);
        mma(right, strip.C[k], b.halves[1]);
      }
      store_square(shared.scores, square_of(strip.index, j), fragment_a(left, right));
    }
  }

  __device__ void start(const ScanInputs<Bf16>& in, const ChunkPlace& place, int group) {
    Bf16* const all = reinterpret_cast<Bf16*>(&shared);
    const SharedTile<kState> B{all}, C{all + kChunk * kState};
    const int64_t column = int64_t(group) * kState;
    copy_tile_async<kChunk, kState, kThreads>(B, in.B.row(place.row0) + column, in.B.stride, 0,
                                              place.size);
    copy_tile_async<kChunk, kState, kThreads>(C, in.C.row(place.row0) + column, in.C.stride, 0,
                                              place.size);
    commit_copies();
    for (int t = threadIdx.x; t < kChunk; t += kThreads) {
      const bool inside = t < place.size;
      shared.first[t] = !inside ? kChunk : (place.enters(t) ? -1 : place.first_seen(t));
    }
    wait_copies<0>();
    __syncthreads();
    strip.start(shared, C, strip_of_warp(), place.size);
    __syncthreads();  // C is read: scores may take its place
    score(B);
    __syncthreads();  // and x that of B
  }

  // The head that was fetched becomes the one to work on.
  __device__ void settle(int size) {
    wait_copies<0>();
    __syncthreads();
    const int s = threadIdx.x;
    if (s < kChunk) {
      Steps& steps = shared.steps;
      const float cum = s < size ? shared.next_cum[s] * kLog2e : 0.0f;
      const float dt = s < size ? shared.next_dt[s] : 0.0f;
      steps.cum[s] = cum;
      steps.dt[s] = dt;
#pragma unroll
      for (int b = 0; b < Shared::kLateBlocks; ++b) {
        const int end = min((b + 1) * kBlock, size) - 1;
        steps.late[b][s] = exp2_approx(shared.next_cum[end] * kLog2e - cum) * dt;
      }
      if (s == 0) steps.D = shared.next_D;
    }
    __syncthreads();
  }

  __device__ void add_incoming(const SharedTile<kState>& incoming) {
#pragma unroll
    for (int k = 0; k < kStateSteps; ++k) {
#pragma unroll
      for (int p = 0; p < kHeadTiles; p += 2) {
        const FragmentPairB h = load_b(incoming, p * kMmaN, k * kMmaK);
        mma(strip.y[p], strip.C[k], h.halves[0]);
        mma(strip.y[p + 1], strip.C[k], h.halves[1]);
      }
    }
  }
  // y += weights (x of step k)
  __device__ void add_step(const FragmentA& weights, const SharedTile<kHeadDim>& x, int k) {
#pragma unroll
    for (int p = 0; p < kHeadTiles; p += 2) {
      const FragmentPairB columns = load_b_transposed(x, p * kMmaN, k * kStrip);
      mma(strip.y[p], weights, columns.halves[0]);
      mma(strip.y[p + 1], weights, columns.halves[1]);
    }
  }

  __device__ void scan(int buffer) {
    if (strip.index < 0) return;
    const Steps& steps = shared.steps;
    const int zero = opaque_zero();
    const SharedTile<kHeadDim> x{shared.x[buffer] + zero};
    for (Accumulator& tile : strip.y) tile = Accumulator{};
    add_incoming(SharedTile<kState>{shared.incoming[buffer] + zero});
    strip.enter(steps);
#pragma unroll 2
    for (int k = 0; k < strip.far_steps; ++k) add_step(strip.far_weights(shared, steps, k), x, k);
    strip.scale_rows();
#pragma unroll 2
    for (int k = strip.far_steps; k <= strip.index; ++k)
      add_step(strip.weights(shared, steps, k), x, k);
  }

  // y += D x, through shared memory to whole rows.
  __device__ void write(int buffer, Bf16* y, int64_t stride, int size) {
    if (strip.index < 0) return;
    const float D = shared.steps.D;
    const int zero = opaque_zero();
    const SharedTile<kHeadDim> x{shared.x[buffer] + zero}, staged{shared.y[warp] + zero};
#pragma unroll
    for (int p = 0; p < kHeadTiles; ++p) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = p * kMmaN + Accumulator::column(0);
        const float2 skip =
            unpack_bf16(*reinterpret_cast<const uint32_t*>(x.element(strip.row(half), column)));
        const float* const value = &strip.y[p].values[2 * half];
        *reinterpret_cast<uint32_t*>(staged.element(Accumulator::row(2 * half), column)) =
            pack_bf16(value[0] + D * skip.x, value[1] + D * skip.y);
      }
    }
    __syncwarp();
    write_strip(staged, 0, y, stride, strip.index * kStrip, size);
    __syncwarp();
  }
};

template <int kChunk, int kState>
__global__ void __launch_bounds__(ForwardShared<kChunk, kState>::kThreads, kChunk > 128 ? 1 : 2)
    forward_kernel(const ScanInputs<Bf16> in, const RowsOf<Bf16> y, const int splits) {
  constexpr int kThreads = ForwardShared<kChunk, kState>::kThreads;
  extern __shared__ __align__(128) char room[];
  auto& shared = *reinterpret_cast<ForwardShared<kChunk, kState>*>(room);
  ForwardBlock<kChunk, kState> block(shared);
  BlockIndex index(blockIdx.x);
  const int split = index.take(splits);
  const HeadRange heads(in, index.take(in.groups), split, splits);
  const int64_t chunk_row = index.rest;
  const ChunkPlace place(in, chunk_row);
  block.start(in, place, heads.group);

  const int token = threadIdx.x;
  const bool inside = token < place.size;
  const auto fetch = [&](int head) {
    const int buffer = (head - heads.begin) % 2;
    const Bf16* const x = in.x.row(place.row0) + int64_t(head) * kHeadDim;
    copy_tile_async<kChunk, kHeadDim, kThreads>(SharedTile<kHeadDim>{shared.x[buffer]}, x,
                                                in.x.stride, 0, place.size);
    copy_state_async<kState, kThreads>(
        shared.incoming[buffer], in.incoming.row(chunk_row) + int64_t(head) * kHeadDim * kState);
    if (inside) {
      copy_async_4(&shared.next_cum[token], in.cum.row(place.row0 + token) + head);
      copy_async_4(&shared.next_dt[token], in.dt.row(place.row0 + token) + head);
    }
    if (token == 0) copy_async_4(&shared.next_D, in.D + head);
    commit_copies();
  };
  fetch(heads.begin);
  block.settle(place.size);
  for (int head = heads.begin; head < heads.end; ++head) {
    const int buffer = (head - heads.begin) % 2;
    if (head + 1 < heads.end) fetch(head + 1);
    block.scan(buffer);
    block.write(buffer, y.row(place.row0) + int64_t(head) * kHeadDim, y.stride, place.size);
    if (head + 1 < heads.end) block.settle(place.size);
  }
}

}  // namespace

bool tensor_scan_forward(const Context& ctx, const ChunkScanForward& args) {
  if (!tensor_cores_take(args) || !aligned_rows(args.y)) return false;
  const ScanInputs<Bf16> in = scan_inputs<Bf16>(args);
  if (scan_by_groups(in)) {
    scan_forward_by_groups(ctx, in, rows_of<Bf16>(args.y));
    return true;
  }
  const int64_t chunk_groups = int64_t(in.chunk_rows) * in.groups;
  return dispatch_scan_shape(args.chunk, in.state_dim, [&]<int kChunk, int kState>() {
    constexpr size_t kShared = sizeof(ForwardShared<kChunk, kState>);
    if (!has_shared_bytes(kShared)) return false;
    const int splits =
        int(head_splits(chunk_groups, in.group_heads(), scan_blocks_at_once(in.chunk)));
    launch(ctx, "chunk_scan_forward",
           {.blocks = unsigned(chunk_groups * splits),
            .threads = unsigned(ForwardShared<kChunk, kState>::kThreads),
            .shared_bytes = kShared},
           forward_kernel<kChunk, kState>, in, rows_of<Bf16>(args.y), splits);
    return true;
  });
}

}  // namespace sluice::cuda
