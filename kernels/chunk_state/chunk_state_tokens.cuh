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

// What chunk_weights_kernel writes; null: not wanted.
struct ChunkWeights {
  float* leaving = nullptr;   // exp(cum_last - cum) dt, 0 where a token does not reach the end
  float* entering = nullptr;  // exp(cum), 0 where a token does not see the state before the chunk
  float* decay = nullptr;     // (B * M, H)
  int64_t decay_stride = 0;
};

// Both weights are 0 in the padding.
template <class T>
__global__ void __launch_bounds__(TokenBlock::kThreads)
    chunk_weights_kernel(ChunkStateInputs<T> in, int64_t padded, ChunkWeights out) {
  __shared__ TokenBlock block;
  const int64_t chunk_row = blockIdx.x, h0 = blockIdx.y * int64_t(TokenBlock::kHeads);
  const ChunkRows rows(in, chunk_row);
  const ChunkSpan span(chunk_row % in.M, in.chunk, in.tokens);
  const int64_t first = rows.end - span.size();
  const int32_t* const doc_begin =
      in.doc_begin + chunk_row / in.M * in.doc_begin_stride + span.begin;
  const int head = threadIdx.x % TokenBlock::kHeads, token = threadIdx.x / TokenBlock::kHeads;
  const int64_t h = std::min(h0 + head, in.H - 1);
  const float cum_last = in.cum[(rows.end - 1) * in.cum_stride + h];
  if (out.decay != nullptr && token == 0 && h0 + head < in.H)
    out.decay[chunk_row * out.decay_stride + h] = rows.starts ? 0.0f : expf(cum_last);
  const auto write = [&](float* weights, int64_t s0, auto&& weight) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kSteps; ++i) {
      const int s = token + i * (TokenBlock::kThreads / TokenBlock::kHeads);
      const int64_t row = first + s0 + s;
      block.values[head][s] = row < rows.end ? weight(row) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kHeads; ++i) {
      if (h0 + i >= in.H || s0 + threadIdx.x >= padded) continue;
      weights[(chunk_row * in.H + h0 + i) * padded + s0 + threadIdx.x] =
          block.values[i][threadIdx.x];
    }
  };
  for (int64_t s0 = 0; s0 < padded; s0 += TokenBlock::kTokens) {
    if (out.leaving != nullptr) {
      write(out.leaving, s0, [&](int64_t row) {
        if (row < rows.begin) return 0.0f;
        return expf(cum_last - in.cum[row * in.cum_stride + h]) * in.dt[row * in.dt_stride + h];
      });
    }
    if (out.entering != nullptr) {
      write(out.entering, s0, [&](int64_t row) {
        return doc_begin[row - first] < span.begin ? expf(in.cum[row * in.cum_stride + h]) : 0.0f;
      });
    }
  }
}

// The sums over states of a token and head, as chunk_dots_kernel takes them.
struct ChunkDots {
  const float* leaving;             // <dstate, x B^T>, (B * M, H * padded)
  const float* entering = nullptr;  // what dcum gets from the state before the chunk, or null
  const float* states = nullptr;    // then <dstate, incoming>, (B * M, H), beside dlog_decay
  const float* decay = nullptr;     // and the decay that it is weighed by
  int64_t decay_stride = 0;
};

// Adds to ddt and dcum.
template <class T, class S>
__global__ void __launch_bounds__(TokenBlock::kThreads)
    chunk_dots_kernel(ChunkStateInputs<T> in, ChunkStateGradients<T, S> out, int64_t padded,
                      ChunkDots dots) {
  __shared__ TokenBlock block;
  const int64_t chunk_row = blockIdx.x, h0 = blockIdx.y * int64_t(TokenBlock::kHeads);
  const ChunkRows rows(in, chunk_row);
  const int64_t last = rows.end - 1;
  const int64_t first = rows.end - ChunkSpan(chunk_row % in.M, in.chunk, in.tokens).size();
  const int head = threadIdx.x % TokenBlock::kHeads, token = threadIdx.x / TokenBlock::kHeads;
  const int64_t h = std::min(h0 + head, in.H - 1);
  const float cum_last = in.cum[last * in.cum_stride + h];
  float share = 0;  // of dcum[last]
  const auto read = [&](const float* from, int64_t s0) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TokenBlock::kHeads; ++i) {
      if (h0 + i < in.H && s0 + threadIdx.x < padded)
        block.values[i][threadIdx.x] =
            from[(chunk_row * in.H + h0 + i) * padded + s0 + threadIdx.x];
    }
    __syncthreads();
  };
  constexpr int kApart = TokenBlock::kThreads / TokenBlock::kHeads;
  for (int64_t s0 = 0; s0 < padded; s0 += TokenBlock::kTokens) {
    // All of a thread's loads before anything depends on them.
    float cum[TokenBlock::kSteps], dt[TokenBlock::kSteps];
    float ddt[TokenBlock::kSteps], dcum[TokenBlock::kSteps];
#pragma unroll
    for (int i = 0; i < TokenBlock::kSteps; ++i) {
      const int64_t row = std::min(first + s0 + token + i * kApart, last);
      cum[i] = in.cum[row * in.cum_stride + h];
      dt[i] = in.dt[row * in.dt_stride + h];
      ddt[i] = out.ddt[row * out.ddt_stride + h];
      dcum[i] = out.dcum[row * out.dcum_stride + h];
    }
    if (dots.entering != nullptr) {
      read(dots.entering, s0);
#pragma unroll
      for (int i = 0; i < TokenBlock::kSteps; ++i)
        dcum[i] += block.values[head][token + i * kApart];
    }
    read(dots.leaving, s0);
#pragma unroll
    for (int i = 0; i < TokenBlock::kSteps; ++i) {
      const int64_t row = first + s0 + token + i * kApart;
      if (row > last || h0 + head >= in.H) continue;
      if (row >= rows.begin) {
        const float dot = expf(cum_last - cum[i]) * block.values[head][token + i * kApart];
        // exp(0) has no share, not even of rounding.
        const float own = row == last ? 0.0f : dt[i] * dot;
        ddt[i] += dot;
        dcum[i] -= own;
        share += own;
      }
      out.ddt[row * out.ddt_stride + h] = ddt[i];
      out.dcum[row * out.dcum_stride + h] = dcum[i];
    }
  }
  __syncthreads();
  block.values[head][token] = share;
  __syncthreads();
  if (token != 0 || h0 + head >= in.H) return;
  float sum =
      out.dlog_decay == nullptr ? 0.0f : out.dlog_decay[chunk_row * out.dlog_decay_stride + h];
  if (dots.states != nullptr)
    sum += dots.decay[chunk_row * dots.decay_stride + h] * dots.states[chunk_row * in.H + h];
  for (int i = 0; i < TokenBlock::kThreads / TokenBlock::kHeads; ++i) sum += block.values[head][i];
  out.dcum[last * out.dcum_stride + h] += sum;
}

inline Grid token_grid(int64_t chunks, int64_t H) {
  return {.blocks = {unsigned(chunks), unsigned(ceil_div(H, TokenBlock::kHeads))},
          .threads = TokenBlock::kThreads};
}

// in: of `batch` rows.
inline void write_chunk_weights(const Context& ctx, const char* name,
                                const ChunkStateInputs<Bf16>& in, int64_t batch,
                                const ChunkWeights& out) {
  launch(ctx, name, token_grid(batch * in.M, in.H), chunk_weights_kernel<Bf16>, in,
         padded_chunk(in.chunk, in.tokens), out);
}

}  // namespace sluice::cuda
