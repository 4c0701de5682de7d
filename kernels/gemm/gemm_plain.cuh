// Products on the ordinary cores: any strides, any alignment, f32 arithmetic. What f32 expert
// layers and the operands that nothing else takes run on.
//
// A block of 256 threads makes a tile of 64 x 64 from slices of 16 of the inner dimension in shared
// memory, 4 x 4 a thread: 32 FMAs for 8 loads of shared memory.
#pragma once

#include "kernels/device/numeric.cuh"

namespace sluice::cuda {

// C = alpha op(A) op(B) + beta C + bias; element (m, k) of op(A) is a[m * a_row + k * a_column].
template <class T, class C>
struct PlainProduct {
  const T* a;
  int64_t a_row, a_column;
  const T* b;
  int64_t b_row, b_column;
  C* c;
  int64_t c_row;
  int64_t M, N, K;
  float alpha, beta;
  const C* bias = nullptr;  // (N)
};

struct PlainTile {
  static constexpr int kSize = 64, kDepth = 16, kThreads = 256, kPerThread = 4;
  // Four words more a row: neighbouring rows start in other banks, and rows stay 16-byte aligned.
  float a[kDepth][kSize + 4];
  float b[kDepth][kSize + 4];

  // A slice (64, 16) of an operand whose element (i, k) is from[i * row + k * column]; 0 beyond
  // `size` and `depth`. Neighbouring threads follow the direction that is contiguous.
  template <class T>
  __device__ static void load(const T* from, int64_t row, int64_t column, int64_t size,
                              int64_t depth, float (&to)[kDepth][kSize + 4]) {
#pragma unroll
    for (int at = int(threadIdx.x); at < kSize * kDepth; at += kThreads) {
      const int i = column == 1 ? at / kDepth : at % kSize;
      const int k = column == 1 ? at % kDepth : at / kSize;
      to[k][i] = i < size && k < depth ? to_float(from[i * row + k * column]) : 0.0f;
    }
  }

  // The tile whose first element is (m, n).
  template <class T, class C>
  __device__ void compute(const PlainProduct<T, C>& p, int64_t m, int64_t n) {
    const int row = int(threadIdx.x) / (kSize / kPerThread) * kPerThread;
    const int column = int(threadIdx.x) % (kSize / kPerThread) * kPerThread;
    float sum[kPerThread][kPerThread] = {};
    for (int64_t k = 0; k < p.K; k += kDepth) {
      load(p.a + m * p.a_row + k * p.a_column, p.a_row, p.a_column, p.M - m, p.K - k, a);
      load(p.b + n * p.b_column + k * p.b_row, p.b_column, p.b_row, p.N - n, p.K - k, b);
      __syncthreads();
#pragma unroll
      for (int depth = 0; depth < kDepth; ++depth) {
        const float4 x = *reinterpret_cast<const float4*>(&a[depth][row]);
        const float4 y = *reinterpret_cast<const float4*>(&b[depth][column]);
        const float xs[] = {x.x, x.y, x.z, x.w}, ys[] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) sum[i][j] += xs[i] * ys[j];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      C* const to = p.c + (m + row + i) * p.c_row + n + column;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (m + row + i >= p.M || n + column + j >= p.N) continue;
        float value = p.alpha * sum[i][j];
        if (p.bias) value += to_float(p.bias[n + column + j]);
        to[j] = from_float<C>(p.beta == 0 ? value : value + p.beta * to_float(to[j]));
      }
    }
  }
};

}  // namespace sluice::cuda
