#include "kernels/core/rng.h"

#include "kernels/core/portable_math.h"

namespace sluice {

double fixed_log(double x) { return portable::log(x); }

double fixed_exp(double x) { return portable::exp(x); }

double random_normal(RngKey key, uint64_t index) { return portable::normal(key, index); }

}  // namespace sluice
