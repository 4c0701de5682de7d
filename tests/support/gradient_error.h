// How far the gradients of two runs, or their parameters, may lie apart.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/support/tensors.h"

namespace sluice::test {

using NamedTensors = std::map<std::string, Tensor>;

inline double norm_of(const Tensor& tensor) {
  double squares = 0;
  for (int64_t i = 0; i < tensor.numel(); ++i) squares += tensor.get(i) * tensor.get(i);
  return std::sqrt(squares);
}

// Every tensor has |got - expected| <= bound max(|expected|, 1e-6 |all expected|), by norm: one
// that is 0 but for rounding counts as a part of all.
inline void expect_equal(const NamedTensors& got, const NamedTensors& expected, double bound,
                         const std::string& what = "gradient of") {
  EXPECT_EQ(got.size(), expected.size());
  double all = 0;
  for (const auto& [name, tensor] : expected) all = std::hypot(all, norm_of(tensor));
  for (const auto& [name, tensor] : expected) {
    Tensor difference = tensor.clone();
    for (int64_t i = 0; i < tensor.numel(); ++i)
      difference.set(i, got.at(name).get(i) - tensor.get(i));
    EXPECT_LE(norm_of(difference) / std::max(norm_of(tensor), 1e-6 * all), bound)
        << what << " " << name;
  }
}

}  // namespace sluice::test
