// The tiles of chunk_state: in float once per instruction set, in double plain.
#include "kernels/chunk_state/chunk_state_tile.h"

namespace sluice::cpu {

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void weigh_rows(int64_t tokens, int64_t width, const float* weight, const float* x,
                int64_t x_stride, float* out) {
  detail::weigh_rows(tokens, width, weight, x, x_stride, out);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void add_weighed_rows(int64_t tokens, int64_t width, const float* weight, const float* v,
                      const float* x, int64_t x_stride, float* dx, int64_t dx_stride, float* dot) {
  detail::add_weighed_rows(tokens, width, weight, v, x, x_stride, dx, dx_stride, dot);
}

void weigh_rows(int64_t tokens, int64_t width, const double* weight, const double* x,
                int64_t x_stride, double* out) {
  detail::weigh_rows(tokens, width, weight, x, x_stride, out);
}

void add_weighed_rows(int64_t tokens, int64_t width, const double* weight, const double* v,
                      const double* x, int64_t x_stride, double* dx, int64_t dx_stride,
                      double* dot) {
  detail::add_weighed_rows(tokens, width, weight, v, x, x_stride, dx, dx_stride, dot);
}

}  // namespace sluice::cpu
