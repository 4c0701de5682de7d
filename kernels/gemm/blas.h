// One tile product on the calling thread, for operators that are themselves tiles of GEMMs (SSD,
// attention, cross-entropy). Row-major; ld* are the row strides in elements.
//
//   C (m, n) = alpha op(A) (m, k) op(B) (k, n) + beta C
//
// beta = 0 overwrites C whatever it held; m, n and k may be 0. Inside or outside a parallel region,
// OpenBLAS runs on the calling thread alone, so the bits do not depend on the thread count.
#pragma once

#include <cstdint>

namespace sluice::cpu {

void tile_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
               int64_t ldc);
void tile_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
               const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
               int64_t ldc);

}  // namespace sluice::cpu
