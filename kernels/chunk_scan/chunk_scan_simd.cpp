// The tiles of chunk_scan: in float once per instruction set, in double plain.
#include "kernels/chunk_scan/chunk_scan_tile.h"

namespace sluice::cpu {

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void weigh_scores(const ScanTile<float>& tile, const float* scores, float* weights) {
  detail::weigh_scores(tile, scores, weights);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void weigh_gradients(const ScanTile<float>& tile, const float* scores, float* dy_x, float* dscores,
                     float* ddt, float* dcum) {
  detail::weigh_gradients(tile, scores, dy_x, dscores, ddt, dcum);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void scale_and_skip(int64_t tokens, int64_t width, const float* entering, float D,
                    Strided<const float> x, Strided<float> y) {
  detail::scale_and_skip(tokens, width, entering, D, x, y);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
double
skip_gradients(int64_t tokens, int64_t width, const float* entering, float D,
               Strided<const float> x, Strided<const float> dy, Strided<float> dx,
               float* entering_dy) {
  return detail::skip_gradients(tokens, width, entering, D, x, dy, dx, entering_dy);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void entering_gradients(int64_t tokens, int64_t width, const float* v, Strided<const float> C,
                        Strided<float> dC, float* dcum) {
  detail::entering_gradients(tokens, width, v, C, dC, dcum);
}

void weigh_scores(const ScanTile<double>& tile, const double* scores, double* weights) {
  detail::weigh_scores(tile, scores, weights);
}

void weigh_gradients(const ScanTile<double>& tile, const double* scores, double* dy_x,
                     double* dscores, double* ddt, double* dcum) {
  detail::weigh_gradients(tile, scores, dy_x, dscores, ddt, dcum);
}

void scale_and_skip(int64_t tokens, int64_t width, const double* entering, double D,
                    Strided<const double> x, Strided<double> y) {
  detail::scale_and_skip(tokens, width, entering, D, x, y);
}

double skip_gradients(int64_t tokens, int64_t width, const double* entering, double D,
                      Strided<const double> x, Strided<const double> dy, Strided<double> dx,
                      double* entering_dy) {
  return detail::skip_gradients(tokens, width, entering, D, x, dy, dx, entering_dy);
}

void entering_gradients(int64_t tokens, int64_t width, const double* v, Strided<const double> C,
                        Strided<double> dC, double* dcum) {
  detail::entering_gradients(tokens, width, v, C, dC, dcum);
}

}  // namespace sluice::cpu
