// The tiles of attention in float, once per instruction set.
#include "kernels/attention/attention_tile.h"

namespace sluice::cpu {

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void softmax_tile(const AttentionTile& tile, float* scores, OnlineSoftmax<float>& softmax) {
  detail::softmax_tile(tile, scores, softmax);
}

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
void gradient_tile(const AttentionTile& tile, const float* lse, const float* dy_y, float* scores,
                   float* dp) {
  detail::gradient_tile(tile, lse, dy_y, scores, dp);
}

}  // namespace sluice::cpu
