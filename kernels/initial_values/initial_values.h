// Initial values of parameters: values[i] = initializer(key, first + i), in double arithmetic whose
// bits are the same on CPU and GPU, rounded once.
#pragma once

#include "kernels/core/context.h"

namespace sluice {

// The initial value of one element: a function of the parameter's key and the element's global
// index, whoever holds it. With u uniform on (0, 1) and z standard normal, both drawn from
// (key, index):
struct Initializer {
  enum class Kind : uint8_t {
    constant,      // a
    normal,        // a z
    uniform,       // a (2 u - 1)
    log_uniform,   // log(a + (b - a) u)
    log_column,    // log(index mod a + 1)
    softplus_inv,  // log(exp(x) - 1), x = max(c, exp(a + (b - a) u))
  };
  Kind kind = Kind::constant;
  double a = 0;
  double b = 0;
  double c = 0;

  double operator()(RngKey key, int64_t index) const;
};

struct InitialValues {
  Initializer initializer = {};
  RngKey key = {};
  int64_t first = 0;       // global index of values[0]
  TensorView values = {};  // packed, f32 or on the CPU f64; overwritten
};
void initial_values(const Context& ctx, const InitialValues& args);

}  // namespace sluice
