// One initial value. Included where nothing is contracted: see portable_math.h.
#pragma once

#include "kernels/core/portable_math.h"
#include "kernels/initial_values/initial_values.h"

namespace sluice::portable {

constexpr double initial_value(const Initializer& f, RngKey key, int64_t index) {
  switch (f.kind) {
    case Initializer::Kind::constant:
      return f.a;
    case Initializer::Kind::normal:
      return f.a * normal(key, uint64_t(index));
    case Initializer::Kind::uniform:
      return f.a * (2 * random_uniform(key, uint64_t(index)) - 1);
    case Initializer::Kind::log_uniform:
      return log(f.a + (f.b - f.a) * random_uniform(key, uint64_t(index)));
    case Initializer::Kind::log_column:
      return log(double(index % int64_t(f.a) + 1));
    case Initializer::Kind::softplus_inv: {
      const double drawn = exp(f.a + (f.b - f.a) * random_uniform(key, uint64_t(index)));
      const double x = drawn < f.c ? f.c : drawn;
      return x + log(1 - exp(-x));
    }
  }
  return 0;
}

}  // namespace sluice::portable
