#include "layers/initializers.h"

namespace sluice {

using Kind = Initializer::Kind;

Initializer constant(double value) { return {.kind = Kind::constant, .a = value}; }

Initializer normal(double std) { return {.kind = Kind::normal, .a = std}; }

Initializer uniform(double bound) { return {.kind = Kind::uniform, .a = bound}; }

Initializer dt_bias(double min, double max, double floor) {
  return {.kind = Kind::softplus_inv, .a = fixed_log(min), .b = fixed_log(max), .c = floor};
}

Initializer A_log_s4d(int64_t N) { return {.kind = Kind::log_column, .a = double(N)}; }

Initializer A_log_uniform(double min, double max) {
  return {.kind = Kind::log_uniform, .a = min, .b = max};
}

}  // namespace sluice
