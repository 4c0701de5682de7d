// How verification compares tensors: |a - b| over the larger of |b| and a share of the norm of all
// tensors, below which a tensor's own size is rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice {

inline double norm_of(const std::vector<double>& x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

// Whether an error is to be told in place of another. A NaN is worse than any, and stays.
inline bool is_worse(double error, double than) { return !(error <= than) && !std::isnan(than); }

inline double comparison_scale(double norm, double norm_of_all) {
  return std::max(norm, 1e-6 * norm_of_all);
}

}  // namespace sluice
