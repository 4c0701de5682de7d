// Matrix products, through OpenBLAS on the CPU.
//
//   gemm:          C = alpha op(A) op(B) + beta C          op(X) is X or its transpose
//   grouped_gemm:  the same for X groups of rows: group e is the rows [offsets[e], offsets[e+1])
//
// A linear layer y = x W^T, W (out, in), is, with rows = B*T:
//   forward   y  = x W^T      {.a = x,  .b = W, .c = y,  .transpose_b = true}
//   data      dx = dy W       {.a = dy, .b = W, .c = dx}
//   weight    dW += dy^T x    {.a = dy, .b = x, .c = dW, .transpose_a = true, .beta = 1}
//
// Operands are matrices (tensors are given as matrix(): rows by row_size), rows may be strided. C
// must not overlap A or B. M, N and K may be 0; beta applies all the same. The CPU splits C into
// tiles by the shape alone and never splits the inner dimension, so results do not depend on the
// thread count.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct Gemm {
  ConstTensorView a = {};  // (M, K), or (K, M) if transpose_a
  ConstTensorView b = {};  // (K, N), or (N, K) if transpose_b
  TensorView c = {};       // (M, N)
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  double beta = 0;  // 0 overwrites C, whatever it held (NaN included)
};
void gemm(const Context& ctx, const Gemm& args);

// Experts: C[rows of e] = A[rows of e] op(weights[e]) + beta C. Rows from offsets[X] on are left
// alone.
struct GroupedGemm {
  ConstTensorView a = {};        // (rows, K)
  ConstTensorView weights = {};  // (X, K, N), or (X, N, K) if transpose_weights
  TensorView c = {};             // (rows, N)
  ConstTensorView offsets = {};  // (X + 1) i64, ascending from 0
  bool transpose_weights = false;
  double beta = 0;
};
void grouped_gemm(const Context& ctx, const GroupedGemm& args);

// dW[e] += a[rows of e]^T b[rows of e]
struct GroupedGemmWeight {
  ConstTensorView a = {};        // (rows, M)
  ConstTensorView b = {};        // (rows, N)
  TensorView weights = {};       // (X, M, N), accumulated
  ConstTensorView offsets = {};  // (X + 1) i64
};
void grouped_gemm_weight(const Context& ctx, const GroupedGemmWeight& args);

}  // namespace sluice
