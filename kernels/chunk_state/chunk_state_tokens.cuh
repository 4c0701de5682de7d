// What belongs to a token and a head (weights, gradients of steps and sums) on its way between
// (B, T, H), where heads lie side by side, and the order of the products' tiles, where a head's
// tokens do. A product that read (B, T, H) would fetch 32 bytes for every 4.
//
// Floor: bytes; 12 MB before the forward at T = 16384, H = 64, and 28 MB after the backward: 4 and
// 9 us. A block takes a chunk and eight heads (a sector of 32 bytes), 256 tokens at a time.
#pragma once

#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

struct TokenBlock {
  static constexpr int kThreads = 256, kHeads = 8, kTokens = 256;
  static constexpr int kSteps = kTokens * kHeads / kThreads;
  float values[kHeads][kTokens + 4];
};

// weights = exp(cum_last - cum) dt, 0 where a token does not reach the chunk's end or is padding.
// decay: (B * M, H), null if not wanted.
template <class T>
__global__ void __launch_bounds__(TokenBlock::kThreads)
    chunk_weights_kernel(ChunkStateInputs<T> in, int64_t padded, float* weights, float* decay,
                         int64_t decay_stride) {
  __shared__ TokenBlock block;
  const int64_t chunk_row = blockIdx.x, h0 = blockIdx.y * int64_t(TokenBlock::kHeads);
  const ChunkRows rows(in, chunk_row);
  const int64_t first = rows.end - ChunkSpan(chunk_row % in.M, in.chunk, in.tokens).size();
  const int head = threadIdx.x % TokenBlock::kHeads, token = threadIdx.x / TokenBlock::kHeads;
  const int64_t h = std::min(h0 + head, in.H - 1);
  const float cum_last = in.cum[(rows.end - 1) * in.cum_stride + h];
  if (decay != nullptr && token == 0 && h0 + head < in.H)
    decay[chunk_row * decay_stride + h] = rows.starts ? 0.0f : expf(cum_last);
  for (int64_t s0 = 0; s0 < padded; s0 += TokenBlock::kTokens) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kSteps; ++i) {
      const int s = token + i * (TokenBlock::kThreads / TokenBlock::kHeads);
      const int64_t row = first + s0 + s;
      const bool counts = row >= rows.begin && row < rows.end;
      block.values[head][s] =
          counts ? expf(cum_last - in.cum[row * in.cum_stride + h]) * in.dt[row * in.dt_stride + h]
                 : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kHeads; ++i) {
      if (h0 + i >= in.H || s0 + threadIdx.x >= padded) continue;
      weights[(chunk_row * in.H + h0 + i) * padded + s0 + threadIdx.x] =
          block.values[i][threadIdx.x];
    }
  }
}

// ddt and dcum from dots = <dstate, x B^T>.
template <class T, class S>
__global__ void __launch_bounds__(TokenBlock::kThreads)
    chunk_dots_kernel(ChunkStateInputs<T> in, ChunkStateGradients<T, S> out, int64_t padded,
                      const float* dots) {
  __shared__ TokenBlock block;
  const int64_t chunk_row = blockIdx.x, h0 = blockIdx.y * int64_t(TokenBlock::kHeads);
  const ChunkRows rows(in, chunk_row);
  const int64_t last = rows.end - 1;
  const int64_t first = rows.end - ChunkSpan(chunk_row % in.M, in.chunk, in.tokens).size();
  const int head = threadIdx.x % TokenBlock::kHeads, token = threadIdx.x / TokenBlock::kHeads;
  const int64_t h = std::min(h0 + head, in.H - 1);
  const float cum_last = in.cum[last * in.cum_stride + h];
  float share = 0;  // of dcum[last]
  for (int64_t s0 = 0; s0 < padded; s0 += TokenBlock::kTokens) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kHeads; ++i) {
      if (h0 + i < in.H && s0 + threadIdx.x < padded)
        block.values[i][threadIdx.x] =
            dots[(chunk_row * in.H + h0 + i) * padded + s0 + threadIdx.x];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kSteps; ++i) {
      const int s = token + i * (TokenBlock::kThreads / TokenBlock::kHeads);
      const int64_t row = first + s0 + s;
      if (row < rows.begin || row >= rows.end || h0 + head >= in.H) continue;
      const float dot = expf(cum_last - in.cum[row * in.cum_stride + h]) * block.values[head][s];
      out.ddt[row * out.ddt_stride + h] += dot;
      if (row == last) continue;  // exp(0): no share, not even of rounding
      const float own = in.dt[row * in.dt_stride + h] * dot;
      out.dcum[row * out.dcum_stride + h] -= own;
      share += own;
    }
  }
  __syncthreads();
  block.values[head][token] = share;
  __syncthreads();
  if (token != 0 || h0 + head >= in.H) return;
  float sum = out.dlog_decay[chunk_row * out.dlog_decay_stride + h];
  for (int i = 0; i < TokenBlock::kThreads / TokenBlock::kHeads; ++i) sum += block.values[head][i];
  out.dcum[last * out.dcum_stride + h] += sum;
}

inline Grid token_grid(int64_t chunks, int64_t H) {
  return {.blocks = {unsigned(chunks), unsigned(ceil_div(H, TokenBlock::kHeads))},
          .threads = TokenBlock::kThreads};
}

}  // namespace sluice::cuda
