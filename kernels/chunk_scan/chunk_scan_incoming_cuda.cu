// chunk_scan's backward on tensor cores, through the incoming states. For a head of a chunk, with e
// the decay from the chunk's start:
//
//   v[t] = e[t] dy[t] h;   dC[t] += v[t], over heads;   dcum[t] = v[t] . C[t]
//   dh   = sum_t e[t] dy[t] C[t]^T
//
// The floor, at T 16384, H 64, P 64, N 128, Q 256: dy, h and the f32 dh once each, 336 MB, 0.112
// ms at 3 TB/s; 34 GFLOP. A block has a chunk, keeps its C in shared memory and its dC in
// registers, and walks over heads with the next dy and h on their way.
#include "kernels/chunk_scan/chunk_scan_tensor.cuh"

namespace sluice::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

template <int kChunk, int kState>
struct IncomingShared {
  alignas(128) Bf16 C[kChunk * kState];
  alignas(128) Bf16 dy[2][kChunk * kHeadDim];
  alignas(128) Bf16 state[2][kHeadDim * kState];  // (P, N)
  float cum[2][kChunk];
  float entering[kChunk];  // 0 where the state is not seen
};

template <int kChunk, int kState>
struct IncomingBlock {
  static constexpr int kOwn = kChunk / kStrip / kWarps;  // strips of a warp
  static constexpr int kStateTiles = kState / kMmaN;
  using Shared = IncomingShared<kChunk, kState>;

  Shared& shared;
  const ScanGradients& to;
  const ChunkPlace& place;
  int64_t chunk_row;
  int warp = int(threadIdx.x) / 32;
  Accumulator dC[kOwn][kStateTiles];

  __device__ int first_token(int own) const { return (own * kWarps + warp) * kStrip; }

  // dC += v, and dcum.
  __device__ void to_tokens(int buffer, int head) {
    const int zero = opaque_zero();
    const SharedTile<kState> C{shared.C + zero}, state{shared.state[buffer] + zero};
    const SharedTile<kHeadDim> dy{shared.dy[buffer] + zero};
    FragmentA rows[kOwn][kHeadSteps];
    float entering[kOwn][2], dcum[kOwn][2] = {};
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
#pragma unroll
      for (int k = 0; k < kHeadSteps; ++k) rows[own][k] = load_a(dy, first_token(own), k * kMmaK);
      for (int half = 0; half < 2; ++half)
        entering[own][half] = shared.entering[first_token(own) + Accumulator::row(2 * half)];
    }
#pragma unroll
    for (int n = 0; n < kStateTiles; n += 2) {
      FragmentPairB columns[kHeadSteps];
#pragma unroll
      for (int k = 0; k < kHeadSteps; ++k)
        columns[k] = load_b_transposed(state, n * kMmaN, k * kMmaK);
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        Accumulator v[2];
#pragma unroll
        for (int k = 0; k < kHeadSteps; ++k) {
          mma(v[0], rows[own][k], columns[k].halves[0]);
          mma(v[1], rows[own][k], columns[k].halves[1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int tile = i / 2, half = i % 2;
          const int token = first_token(own) + Accumulator::row(2 * half);
          const int column = (n + tile) * kMmaN + Accumulator::column(0);
          const float2 c =
              unpack_bf16(*reinterpret_cast<const uint32_t*>(C.element(token, column)));
          const float* const value = &v[tile].values[2 * half];
          float* const sum = &dC[own][n + tile].values[2 * half];
          dcum[own][half] += value[0] * c.x + value[1] * c.y;
          sum[0] += entering[own][half] * value[0];
          sum[1] += entering[own][half] * value[1];
        }
      }
    }
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      for (int half = 0; half < 2; ++half) {
        float sum = dcum[own][half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int token = first_token(own) + Accumulator::row(2 * half);
        if (threadIdx.x % 4 == 0 && token < place.size)
          to.dcum.row(place.row0 + token)[head] = sum * entering[own][half];
      }
    }
  }

  // dh: a warp makes 32 of its 64 rows and a quarter of its columns.
  __device__ void to_state(int buffer, int head) {
    constexpr int kRowTiles = 2, kColumns = kState / 4, kPairs = kColumns / 16;
    const int zero = opaque_zero();
    const SharedTile<kState> C{shared.C + zero};
    const SharedTile<kHeadDim> dy{shared.dy[buffer] + zero};
    const int p0 = warp % 2 * 32, n0 = warp / 2 * kColumns;
    const float* const entering = shared.entering + Accumulator::column(0);
    Accumulator sum[kRowTiles][2 * kPairs];
    const int steps = (place.size + kMmaK - 1) / kMmaK;
#pragma unroll 4
    for (int k = 0; k < steps; ++k) {
      const float2 e[2] = {*reinterpret_cast<const float2*>(entering + k * kMmaK),
                           *reinterpret_cast<const float2*>(entering + k * kMmaK + 8)};
      FragmentPairB columns[kPairs];
#pragma unroll
      for (int n = 0; n < kPairs; ++n)
        columns[n] = load_b_transposed(C.from_row(k * kMmaK), n0 + n * 16, 0);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        FragmentA rows = load_a_transposed(dy.from_row(k * kMmaK), p0 + m * kMmaM, 0);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 value = unpack_bf16(rows.words[i]);
          rows.words[i] = pack_bf16(value.x * e[i / 2].x, value.y * e[i / 2].y);
        }
#pragma unroll
        for (int n = 0; n < 2 * kPairs; ++n) mma(sum[m][n], rows, columns[n / 2].halves[n % 2]);
      }
    }
    float* const out = to.dincoming.row(chunk_row) + int64_t(head) * kHeadDim * kState;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * kPairs; ++n) {
        for (int half = 0; half < 2; ++half) {
          const int p = p0 + m * kMmaM + Accumulator::row(2 * half);
          const int column = n0 + n * kMmaN + Accumulator::column(0);
          *reinterpret_cast<float2*>(out + p * kState + column) =
              make_float2(sum[m][n].values[2 * half], sum[m][n].values[2 * half + 1]);
        }
      }
    }
  }

  __device__ void write(int group, int split) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      for (int half = 0; half < 2; ++half) {
        const int token = first_token(own) + Accumulator::row(2 * half);
        if (token >= place.size) continue;
        const int64_t row = (to.splits + split) * to.all_tokens + place.row0 + token;
        float* const out = to.partial_dC.row(row) + int64_t(group) * kState;
#pragma unroll
        for (int n = 0; n < kStateTiles; ++n) {
          const float* const value = &dC[own][n].values[2 * half];
          *reinterpret_cast<float2*>(out + n * kMmaN + Accumulator::column(0)) =
              make_float2(value[0], value[1]);
        }
      }
    }
  }
};

template <int kChunk, int kState>
__global__ void __launch_bounds__(kThreads, 1)
    incoming_kernel(const ScanInputs<Bf16> in, const ScanGradients to) {
  extern __shared__ __align__(128) char room[];
  auto& shared = *reinterpret_cast<IncomingShared<kChunk, kState>*>(room);
  BlockIndex index(blockIdx.x);
  const int split = index.take(to.splits);
  const HeadRange heads(in, index.take(in.groups), split, to.splits);
  const int64_t chunk_row = index.rest;
  const ChunkPlace place(in, chunk_row);
  IncomingBlock<kChunk, kState> block{shared, to, place, chunk_row};
  const int token = threadIdx.x;
  const bool enters = token < place.size && place.enters(token);

  const auto fetch = [&](int head) {
    const int buffer = (head - heads.begin) % 2;
    copy_tile_async<kChunk, kHeadDim, kThreads>(SharedTile<kHeadDim>{shared.dy[buffer]},
                                                to.dy.row(place.row0) + int64_t(head) * kHeadDim,
                                                to.dy.stride, 0, place.size);
    copy_state_async<kState, kThreads>(
        shared.state[buffer], in.incoming.row(chunk_row) + int64_t(head) * kHeadDim * kState);
    if (enters) copy_async_4(&shared.cum[buffer][token], in.cum.row(place.row0 + token) + head);
    commit_copies();
  };
  const auto settle = [&](int head) {
    const int buffer = (head - heads.begin) % 2;
    wait_copies<0>();
    __syncthreads();
    if (token < kChunk)
      shared.entering[token] = enters ? exp2_approx(shared.cum[buffer][token] * kLog2e) : 0.0f;
    __syncthreads();
  };
  copy_tile_async<kChunk, kState, kThreads>(SharedTile<kState>{shared.C},
                                            in.C.row(place.row0) + int64_t(heads.group) * kState,
                                            in.C.stride, 0, place.size);
  fetch(heads.begin);
  settle(heads.begin);
  for (int head = heads.begin; head < heads.end; ++head) {
    const int buffer = (head - heads.begin) % 2;
    if (head + 1 < heads.end) fetch(head + 1);
    block.to_tokens(buffer, head);
    block.to_state(buffer, head);
    if (head + 1 < heads.end) settle(head + 1);
  }
  block.write(heads.group, split);
}

}  // namespace

size_t incoming_backward_shared(const ScanInputs<Bf16>& in) {
  size_t bytes = 0;
  dispatch_scan_shape(in.chunk, in.state_dim, [&]<int kChunk, int kState>() {
    bytes = sizeof(IncomingShared<kChunk, kState>);
  });
  return bytes;
}

void incoming_backward(const Context& ctx, const ScanInputs<Bf16>& in, const ScanGradients& to) {
  dispatch_scan_shape(in.chunk, in.state_dim, [&]<int kChunk, int kState>() {
    launch(ctx, "chunk_scan_backward",
           {.blocks = unsigned(int64_t(in.chunk_rows) * in.groups * to.splits),
            .threads = kThreads,
            .shared_bytes = sizeof(IncomingShared<kChunk, kState>)},
           incoming_kernel<kChunk, kState>, in, to);
  });
}

}  // namespace sluice::cuda
