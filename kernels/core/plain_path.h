// How a log says what a shape costs that an operator's fast kernels do not take. Operators tell for
// themselves (describe_...), by the predicates that their launchers ask. The factors are of one
// H100 and bf16, forward and backward together, beside the nearest shape that is taken:
// `sluice-bench --plain`, docs/gpu-runs.md.
#pragma once

#include <cmath>
#include <string>

#include "kernels/core/error.h"

namespace sluice {

inline std::string times_as_long(double factor) {
  const double parts = factor < 10 ? 10 : 1;
  return concat("about ", std::round(factor * parts) / parts, " times as long");
}

inline std::string on_plain_kernels(const std::string& what, double factor,
                                    const std::string& fast) {
  return concat(what, " on plain kernels, ", times_as_long(factor),
                " as on the fast ones, which take ", fast);
}

// Two of these descriptions as one.
inline std::string joined(const std::string& first, const std::string& second) {
  return first + (first.empty() || second.empty() ? "" : "; ") + second;
}
template <class... More>
std::string joined(const std::string& first, const std::string& second, const More&... more) {
  return joined(joined(first, second), more...);
}

}  // namespace sluice
