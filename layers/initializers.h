// Initial values, as the papers' reference models have them.
#pragma once

#include "layers/parameter_store.h"

namespace sluice {

Initializer constant(double value);
Initializer normal(double std);
// U(-bound, bound); a linear layer's default is bound = fan_in^(-1/2).
Initializer uniform(double bound);
// dt_bias such that softplus(dt_bias) = max(floor, exp(U(log min, log max))) (Gu and Dao, 2023,
// section 3.6).
Initializer dt_bias(double min, double max, double floor);
// A_log[e,n] = log(n + 1): the real part of S4D (Gu et al., 2022), N the row length.
Initializer A_log_s4d(int64_t N);
// A_log = log(U(min, max)) (Dao and Gu, 2024).
Initializer A_log_uniform(double min, double max);

// A_log, D, dt_bias, norms, biases: no weight decay, and f32 whatever the model computes in.
inline constexpr ParameterFlags kNoDecay{.decay = false, .precise = true};

}  // namespace sluice
