// Central differences in double against a hand-written backward.
//
// The scalar is sum_i r_i y_i over all outputs, with fixed random r, so every output's gradient is
// exercised. `forward` must recompute the outputs from the inputs in place; the analytic gradients
// are given by the caller, computed with dy = r.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/tensors.h"
#include "tests/support/tolerance.h"

namespace sluice::test {

struct CheckedInput {
  std::string name;
  Tensor* value;           // perturbed element by element (at most `max_elements`, spread evenly)
  const Tensor* gradient;  // the backward's answer
};

inline double weighted_sum(const std::vector<const Tensor*>& outputs,
                           const std::vector<const Tensor*>& weights) {
  double sum = 0;
  for (size_t k = 0; k < outputs.size(); ++k) {
    for (int64_t i = 0; i < outputs[k]->numel(); ++i)
      sum += weights[k]->get(i) * outputs[k]->get(i);
  }
  return sum;
}

// `loss` recomputes everything and returns the scalar.
inline void check_gradients(const std::function<double()>& loss,
                            const std::vector<CheckedInput>& inputs,
                            double tolerance = kGradientCheck, int64_t max_elements = 400,
                            double step = 1e-5) {
  for (const CheckedInput& input : inputs) {
    SCOPED_TRACE(input.name);
    ASSERT_EQ(input.value->dtype(), DType::f64);
    ASSERT_TRUE(input.value->dims() == input.gradient->dims());
    const int64_t count = input.value->numel();
    const int64_t stride = std::max<int64_t>(1, count / max_elements);
    double difference = 0;
    double norm = 0;
    int64_t worst = 0;
    double worst_difference = -1;
    double worst_numeric = 0;
    for (int64_t i = 0; i < count; i += stride) {
      const double original = input.value->get(i);
      input.value->set(i, original + step);
      const double above = loss();
      input.value->set(i, original - step);
      const double below = loss();
      input.value->set(i, original);
      const double numeric = (above - below) / (2 * step);
      const double error = std::fabs(numeric - input.gradient->get(i));
      difference += error * error;
      norm += numeric * numeric;
      if (!(error <= worst_difference)) {
        worst = i;
        worst_difference = error;
        worst_numeric = numeric;
      }
    }
    // Inputs of no influence have gradient 0: then the absolute error counts.
    EXPECT_LE(std::sqrt(difference), tolerance * std::max(std::sqrt(norm), 1e-2))
        << "worst at element " << worst << ": backward says " << input.gradient->get(worst)
        << ", central difference " << worst_numeric;
  }
}

}  // namespace sluice::test
