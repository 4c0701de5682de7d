// Every tolerance of the tests, in one place.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::test {

// Relative error, by norm, of two ways to compute the same sums of `terms` products.
inline double tolerance(DType dtype, int64_t terms = 1) {
  const double unit = dtype == DType::f64 ? 1e-15 : 1e-7;
  return 8 * unit * std::sqrt(double(terms) + 1);
}

inline constexpr double kGradientCheck = 2e-7;  // analytic against central differences, in double
inline constexpr double kFixtureLoss = 1e-5;    // Hugging Face fixtures
inline constexpr double kFixtureLogits = 1e-4;
inline constexpr double kFixtureGradient = 1e-4;
inline constexpr double kGeneration = 1e-5;  // token by token against the training forward

// Of the golden losses: processors differ in their last bits, and 20 steps of Adam amplify them.
inline constexpr double kGoldenLoss = 1e-5;

// Of operators in bf16: times the error of the straightforward computation, step by step in bf16.
inline constexpr double kMostBf16Error = 1.5;

}  // namespace sluice::test
