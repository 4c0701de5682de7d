#include "layers/initializers.h"

#include <algorithm>
#include <cmath>

namespace sluice {

Initializer constant(double value) {
  return [value](RngKey, int64_t) { return value; };
}

Initializer normal(double std) {
  return [std](RngKey key, int64_t index) { return std * random_normal(key, index); };
}

Initializer uniform(double bound) {
  return
      [bound](RngKey key, int64_t index) { return bound * (2 * random_uniform(key, index) - 1); };
}

Initializer dt_bias(double min, double max, double floor) {
  const double log_min = fixed_log(min);
  const double log_span = fixed_log(max) - log_min;
  return [=](RngKey key, int64_t index) {
    const double dt = std::max(floor, fixed_exp(log_min + log_span * random_uniform(key, index)));
    return dt + fixed_log(1 - fixed_exp(-dt));  // the inverse of softplus
  };
}

Initializer A_log_s4d(int64_t N) {
  return [N](RngKey, int64_t index) { return fixed_log(double(index % N + 1)); };
}

Initializer A_log_uniform(double min, double max) {
  return [=](RngKey key, int64_t index) {
    return fixed_log(min + (max - min) * random_uniform(key, index));
  };
}

}  // namespace sluice
