// The CPU side of adamw, as its dispatcher sees it.
#pragma once

#include "kernels/adamw/adamw.h"

namespace sluice::cpu {

// The numbers of one update of one span: the bias corrections turned into factors.
struct AdamWFactors {
  double beta1 = 0;
  double beta2 = 0;
  double grad_scale = 1;
  double step = 0;           // lr / (1 - beta1^t)
  double root_unbias_v = 0;  // (1 - beta2^t)^(-1/2)
  double eps = 0;
  double decay = 0;  // lr * weight_decay

  AdamWFactors(const AdamW& args, double weight_decay, double lr_scale);
};

template <class T>
void adamw(const AdamW& args);

// The same over [0, n) in one thread, vectorised for the processor at hand.
void adamw_simd(const AdamWFactors& factors, int64_t n, const float* grad, float* value, float* m,
                float* v);

}  // namespace sluice::cpu
