// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
//
// The plain path: f32, and shapes that tensor cores do not take (which have no use for what each
// chunk adds by itself: entering_states). 64 x 64 tiles of f32 products; it is bound by its 2 T H P
// N FLOPs (forward), 4 T H P N (backward) on the f32 pipes.
#include "kernels/chunk_state/chunk_state_cuda.h"

#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/tile_product.cuh"

namespace sluice::cuda {
namespace {

// Tiles of a (rows, columns) matrix, by index.
struct Tiles {
  int64_t rows, columns;

  constexpr int64_t across() const { return (columns + kTile - 1) / kTile; }
  constexpr int64_t count() const { return (rows + kTile - 1) / kTile * across(); }
  __device__ int64_t row(int64_t tile) const { return tile / across() * kTile; }
  __device__ int64_t column(int64_t tile) const { return tile % across() * kTile; }
};

struct States {
  float *state, *decay;
  int64_t state_stride, decay_stride;
};

// Block: a chunk, a head, a tile of (P, N).
template <class T>
__global__ void __launch_bounds__(kTileThreads) forward_kernel(ChunkStateInputs<T> in, States out) {
  __shared__ TileRoom room;
  const int64_t h = blockIdx.y, chunk_row = blockIdx.x;
  const ChunkRows rows(in, chunk_row);
  const Tiles tiles{in.P, in.N};
  const int64_t p0 = tiles.row(blockIdx.z), n0 = tiles.column(blockIdx.z);
  const float* const cum = in.cum + rows.begin * in.cum_stride + h;
  const float* const dt = in.dt + rows.begin * in.dt_stride + h;
  const T* const x = in.x + rows.begin * in.x_stride + h * in.P + p0;
  const T* const B = in.B + rows.begin * in.B_stride + h * in.G / in.H * in.N + n0;
  const int64_t size = rows.end - rows.begin;
  const float cum_last = cum[(size - 1) * in.cum_stride];
  float acc[kTileSide][kTileSide] = {};
  tile_product<Along::side, Along::side>(
      size,
      [&](int64_t s, int p) {
        if (p0 + p >= in.P) return 0.0f;
        const float weight = expf(cum_last - cum[s * in.cum_stride]) * dt[s * in.dt_stride];
        return weight * to_float(x[s * in.x_stride + p]);
      },
      [&](int64_t s, int n) { return n0 + n < in.N ? to_float(B[s * in.B_stride + n]) : 0.0f; },
      room, acc);
  float* const state = out.state + chunk_row * out.state_stride + h * in.P * in.N;
#pragma unroll
  for (int i = 0; i < kTileSide; ++i) {
#pragma unroll
    for (int j = 0; j < kTileSide; ++j) {
      const int64_t p = p0 + tile_row() + i, n = n0 + tile_column() + j;
      if (p < in.P && n < in.N) state[p * in.N + n] = acc[i][j];
    }
  }
  if (blockIdx.z == 0 && threadIdx.x == 0)
    out.decay[chunk_row * out.decay_stride + h] = rows.starts ? 0.0f : expf(cum_last);
}

// A row's share of dcum[last] after its ddt and dcum are written.
template <class T, class S>
__device__ float add_row_gradients(const ChunkStateInputs<T>& in,
                                   const ChunkStateGradients<T, S>& out, int64_t row, int64_t last,
                                   int64_t h, float dot) {
  const float decay = expf(in.cum[last * in.cum_stride + h] - in.cum[row * in.cum_stride + h]);
  const float dt = in.dt[row * in.dt_stride + h];
  out.ddt[row * out.ddt_stride + h] += decay * dot;
  if (row == last) return 0;  // exp(0): no share, not even of rounding
  out.dcum[row * out.dcum_stride + h] -= decay * dt * dot;
  return decay * dt * dot;
}

// dx, ddt and dcum. Block: a chunk and a head, in tiles of (tokens, P).
template <class T, class S>
__global__ void __launch_bounds__(kTileThreads)
    dx_kernel(ChunkStateInputs<T> in, ChunkStateGradients<T, S> out) {
  __shared__ TileRoom room;
  __shared__ float shares[kTileThreads / 16];
  const int64_t h = blockIdx.y, chunk_row = blockIdx.x;
  const ChunkRows rows(in, chunk_row);
  const int64_t last = rows.end - 1;
  const S* const dstate = out.dstate + chunk_row * out.dstate_stride + h * in.P * in.N;
  const T* const B = in.B + h * in.G / in.H * in.N;
  const float cum_last = in.cum[last * in.cum_stride + h];
  float share = 0;  // of dcum[last]
  for (int64_t s0 = rows.begin; s0 < rows.end; s0 += kTile) {
    float dot[kTileSide] = {};  // <dstate, x B^T> of the thread's rows
    for (int64_t p0 = 0; p0 < in.P; p0 += kTile) {
      float v[kTileSide][kTileSide] = {};  // dstate B
      tile_product<Along::depth, Along::depth>(
          in.N,
          [&](int64_t n, int s) {
            return s0 + s < rows.end ? to_float(B[(s0 + s) * in.B_stride + n]) : 0.0f;
          },
          [&](int64_t n, int p) {
            return p0 + p < in.P ? to_float(dstate[(p0 + p) * in.N + n]) : 0.0f;
          },
          room, v);
#pragma unroll
      for (int i = 0; i < kTileSide; ++i) {
        const int64_t row = s0 + tile_row() + i;
        if (row >= rows.end) continue;
        const float weight =
            expf(cum_last - in.cum[row * in.cum_stride + h]) * in.dt[row * in.dt_stride + h];
#pragma unroll
        for (int j = 0; j < kTileSide; ++j) {
          const int64_t p = p0 + tile_column() + j;
          if (p >= in.P) continue;
          T& dx = out.dx[row * out.dx_stride + h * in.P + p];
          dx = from_float<T>(to_float(dx) + weight * v[i][j]);
          dot[i] += v[i][j] * to_float(in.x[row * in.x_stride + h * in.P + p]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTileSide; ++i) {
      dot[i] = warp_sum<16>(dot[i]);  // over the threads of a row
      const int64_t row = s0 + tile_row() + i;
      if (threadIdx.x % 16 == 0 && row < rows.end)
        share += add_row_gradients(in, out, row, last, h, dot[i]);
    }
  }
  if (threadIdx.x % 16 == 0) shares[threadIdx.x / 16] = share;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float total = out.dlog_decay[chunk_row * out.dlog_decay_stride + h];
  for (const float one : shares) total += one;
  out.dcum[last * out.dcum_stride + h] += total;
}

// Block: a chunk, a group, a tile of (tokens, N). The heads of the group are added in order.
template <class T, class S>
__global__ void __launch_bounds__(kTileThreads)
    dB_kernel(ChunkStateInputs<T> in, ChunkStateGradients<T, S> out) {
  __shared__ TileRoom room;
  __shared__ float weights[kTile];
  const int64_t g = blockIdx.y, chunk_row = blockIdx.x;
  const ChunkRows rows(in, chunk_row);
  const Tiles tiles{in.chunk, in.N};
  const int64_t s0 = rows.begin + tiles.row(blockIdx.z), n0 = tiles.column(blockIdx.z);
  if (s0 >= rows.end) return;
  float acc[kTileSide][kTileSide] = {};
  const int64_t heads = in.H / in.G;
  for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
    const int64_t mine = s0 + threadIdx.x;
    if (threadIdx.x < kTile && mine < rows.end) {
      const float cum_last = in.cum[(rows.end - 1) * in.cum_stride + h];
      weights[threadIdx.x] =
          expf(cum_last - in.cum[mine * in.cum_stride + h]) * in.dt[mine * in.dt_stride + h];
    }
    __syncthreads();
    const S* const dstate = out.dstate + chunk_row * out.dstate_stride + h * in.P * in.N + n0;
    const T* const x = in.x + h * in.P;
    tile_product<Along::depth, Along::side>(
        in.P,
        [&](int64_t p, int s) {
          return s0 + s < rows.end ? weights[s] * to_float(x[(s0 + s) * in.x_stride + p]) : 0.0f;
        },
        [&](int64_t p, int n) { return n0 + n < in.N ? to_float(dstate[p * in.N + n]) : 0.0f; },
        room, acc);
  }
#pragma unroll
  for (int i = 0; i < kTileSide; ++i) {
#pragma unroll
    for (int j = 0; j < kTileSide; ++j) {
      const int64_t row = s0 + tile_row() + i, n = n0 + tile_column() + j;
      if (row >= rows.end || n >= in.N) continue;
      T& dB = out.dB[row * out.dB_stride + g * in.N + n];
      dB = from_float<T>(to_float(dB) + acc[i][j]);
    }
  }
}

}  // namespace

void chunk_state_forward(const Context& ctx, const ChunkStateForward& args) {
  const States out{.state = args.state.as<float>(),
                   .decay = args.decay.as<float>(),
                   .state_stride = args.state.row_stride,
                   .decay_stride = args.decay.row_stride};
  dispatch_float(args.x.dtype, [&]<class T>() {
    const auto in = chunk_state_inputs<T>(args);
    const Tiles tiles{in.P, in.N};
    launch(ctx, "chunk_state_forward",
           {.blocks = {unsigned(args.state.rows()), unsigned(in.H), unsigned(tiles.count())},
            .threads = kTileThreads},
           forward_kernel<T>, in, out);
  });
}

void chunk_state_backward(const Context& ctx, const ChunkStateBackward& args,
                          const ChunkStateScratch& scratch) {
  if (scratch.dB && chunk_state_backward_fits(args))
    return chunk_state_backward_mma(ctx, args, scratch);
  const auto run = [&]<class T, class S>() {
    const auto in = chunk_state_inputs<T>(args);
    const auto out = chunk_state_gradients<T, S>(args);
    const unsigned chunks = unsigned(args.dstate.rows());
    launch(ctx, "chunk_state_backward",
           {.blocks = {chunks, unsigned(in.H)}, .threads = kTileThreads}, dx_kernel<T, S>, in, out);
    const Tiles tiles{std::min(in.chunk, in.tokens), in.N};
    launch(ctx, "chunk_state_backward",
           {.blocks = {chunks, unsigned(in.G), unsigned(tiles.count())}, .threads = kTileThreads},
           dB_kernel<T, S>, in, out);
  };
  if (args.x.dtype == DType::f32) {
    run.template operator()<float, float>();
  } else if (args.dstate.dtype == DType::f32) {
    run.template operator()<Bf16, float>();
  } else {
    run.template operator()<Bf16, Bf16>();
  }
}

}  // namespace sluice::cuda
