// Matrix products: OpenBLAS on the CPU, cuBLASLt and own kernels on GPUs.
//
//   gemm:          C = alpha op(A) op(B) + beta C + bias   op(X) is X or its transpose
//   grouped_gemm:  the same for X groups of rows: group e is the rows [offsets[e], offsets[e+1])
//
// A linear layer y = x W^T, W (out, in), is, with rows = B*T:
//   forward   y  = x W^T + b  {.a = x,  .b = W, .c = y,  .bias = b, .transpose_b = true}
//   data      dx = dy W       {.a = dy, .b = W, .c = dx}
//   weight    dW += dy^T x    {.a = dy, .b = x, .c = dW, .transpose_a = true, .beta = 1}
//
// Operands are matrices (tensors are given as matrix(): rows by row_size), rows may be strided. C
// must not overlap A or B. M, N and K may be 0; beta applies all the same. The CPU splits C into
// tiles by the shape alone and never splits the inner dimension, so results do not depend on the
// thread count. On a GPU the algorithm follows from shape, strides, dtypes and the pointers'
// alignment up to 16 bytes; reruns have the same bits.
//
// On a GPU, operands may be of two dtypes; sums are f32:
//   a, b f32           c f32                full f32 arithmetic
//   a, b bf16          c bf16 or f32
//   one f32, one bf16  c f32                f32 is split into three bf16 terms, which hold all its
//                                           24 bits: one product of all of them, nothing lost
//                                           (router logits); the other operand is read once
//   any f32            c bf16               f32 is rounded to bf16 first
// The bias is added to the f32 sums, before C is rounded: in cuBLASLt's epilogue, which takes it in
// C's dtype, or in our own kernels.
#pragma once

#include <initializer_list>
#include <string>

#include "kernels/core/context.h"

namespace sluice {

struct Gemm {
  ConstTensorView a = {};     // (M, K), or (K, M) if transpose_a
  ConstTensorView b = {};     // (K, N), or (N, K) if transpose_b
  TensorView c = {};          // (M, N)
  ConstTensorView bias = {};  // (N) statistics, added to every row; optional
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  double beta = 0;  // 0 overwrites C, whatever it held (NaN included)
};
void gemm(const Context& ctx, const Gemm& args);

// What keeps products whose operands and results have rows that lie so many elements apart from a
// device's fast algorithms, for a log: those move 16 bytes at a time, and rows that begin elsewhere
// do without. (Rows that only end elsewhere, as those of padded activations, are cut there.) Empty:
// nothing.
std::string describe_products(Device device, DType dtype, std::initializer_list<int64_t> widths);

// Experts: C[rows of e] = A[rows of e] op(weights[e]) + beta C. Rows from offsets[X] on are left
// alone. Offsets are where the operands are: only the CPU checks them.
struct GroupedGemm {
  ConstTensorView a = {};        // (rows, K)
  ConstTensorView weights = {};  // (X, K, N), or (X, N, K) if transpose_weights
  TensorView c = {};             // (rows, N)
  ConstTensorView offsets = {};  // (X + 1) i64, ascending from 0
  bool transpose_weights = false;
  double beta = 0;
  // A promise that neither this product nor the operator before it on the stream uses what the
  // other writes: a GPU may begin with it while that one ends.
  bool independent = false;
};
void grouped_gemm(const Context& ctx, const GroupedGemm& args);

// dW[e] = a[rows of e]^T b[rows of e] + beta dW[e], also of groups without rows
struct GroupedGemmWeight {
  ConstTensorView a = {};        // (rows, M)
  ConstTensorView b = {};        // (rows, N)
  TensorView weights = {};       // (X, M, N) statistics
  ConstTensorView offsets = {};  // (X + 1) i64
  double beta = 1;               // or 0, which overwrites dW, whatever it held
  bool independent = false;      // as above
};
void grouped_gemm_weight(const Context& ctx, const GroupedGemmWeight& args);

}  // namespace sluice
