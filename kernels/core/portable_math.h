// Functions of doubles whose bits are the same on every machine, CPU or GPU: a fixed sequence of
// IEEE operations with explicit fma, instead of libm's. Who includes this compiles without
// contraction of other products and sums (-ffp-contract=off, --fmad=false), or for a processor
// without fma.
//
// All are constexpr so that device code may call them.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/core/rng.h"

namespace sluice::portable {

// Horner's rule, lowest order first, with explicit fma: no compiler decides about contraction.
template <size_t kTerms>
constexpr double polynomial(const double (&coefficients)[kTerms], double x) {
  double sum = coefficients[kTerms - 1];
  for (size_t term = kTerms - 1; term-- > 0;) sum = std::fma(sum, x, coefficients[term]);
  return sum;
}

inline constexpr double kLn2High = 0x1.62e42fefa3800p-1;
inline constexpr double kLn2Low = 0x1.ef35793c76730p-45;

// x > 0, normal.
constexpr double log(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = int(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    exponent += 1;
  }
  // log(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172: the series to s^23 is below 1e-18.
  const double s = (mantissa - 1) / (mantissa + 1);
  const double square = s * s;
  double series = 0;
  for (int odd = 23; odd >= 3; odd -= 2) series = std::fma(series, square, 1.0 / odd);
  const double log_mantissa = std::fma(2 * s * square, series, 2 * s);
  const double n = exponent;
  return std::fma(n, kLn2High, std::fma(n, kLn2Low, log_mantissa));
}

// |x| < 700
constexpr double exp(double x) {
  const double n = std::nearbyint(x * 1.4426950408889634);
  const double r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, x));
  double series = 1.0;  // Taylor to r^14 / 14!, |r| < 0.347
  for (int term = 14; term >= 1; --term) series = std::fma(series * r, 1.0 / term, 1.0);
  return std::ldexp(series, int(n));
}

// Standard normal: the inverse of the distribution function, by the rational approximation of
// Wichura, "Algorithm AS 241" (Applied Statistics 37, 1988), routine PPND16; relative error 1e-16.
constexpr double normal(RngKey key, uint64_t index) {
  // Numerators and denominators of the three regions. In here, since device code sees no arrays
  // of a namespace.
  constexpr double kCentralA[] = {3.3871328727963666080e0,  1.3314166789178437745e+2,
                                  1.9715909503065514427e+3, 1.3731693765509461125e+4,
                                  4.5921953931549871457e+4, 6.7265770927008700853e+4,
                                  3.3430575583588128105e+4, 2.5090809287301226727e+3};
  constexpr double kCentralB[] = {1.0,
                                  4.2313330701600911252e+1,
                                  6.8718700749205790830e+2,
                                  5.3941960214247511077e+3,
                                  2.1213794301586595867e+4,
                                  3.9307895800092710610e+4,
                                  2.8729085735721942674e+4,
                                  5.2264952788528545610e+3};
  constexpr double kMiddleC[] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                 5.76949722146069140550e0,  3.64784832476320460504e0,
                                 1.27045825245236838258e0,  2.41780725177450611770e-1,
                                 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double kMiddleD[] = {1.0,
                                 2.05319162663775882187e0,
                                 1.67638483018380384940e0,
                                 6.89767334985100004550e-1,
                                 1.48103976427480074590e-1,
                                 1.51986665636164571966e-2,
                                 5.47593808499534494600e-4,
                                 1.05075007164441684324e-9};
  constexpr double kTailE[] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                               1.78482653991729133580e0,  2.96560571828504891230e-1,
                               2.65321895265761230930e-2, 1.24266094738807843860e-3,
                               2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double kTailF[] = {1.0,
                               5.99832206555887937690e-1,
                               1.36929880922735805310e-1,
                               1.48753612908506148525e-2,
                               7.86869131145613259100e-4,
                               1.84631831751005468180e-5,
                               1.42151175831644588870e-7,
                               2.04426310338993978564e-15};
  const double u = random_uniform(key, index);
  const double q = u - 0.5;
  if (std::fabs(q) <= 0.425) {
    const double r = std::fma(-q, q, 0.180625);
    return q * polynomial(kCentralA, r) / polynomial(kCentralB, r);
  }
  const double r = std::sqrt(-log(q < 0 ? u : 1 - u));
  const double tail = r <= 5 ? polynomial(kMiddleC, r - 1.6) / polynomial(kMiddleD, r - 1.6)
                             : polynomial(kTailE, r - 5) / polynomial(kTailF, r - 5);
  return q < 0 ? -tail : tail;
}

}  // namespace sluice::portable
