// The hand-written backward of a reduced model against finite differences, in f64.
#pragma once

#include <string>
#include <vector>

#include "trainer/config.h"

namespace sluice {

struct KindCheck {
  std::string kind;       // "mamba2", "norm", "embedding", ...
  std::string parameter;  // with the largest error
  double error = 0;       // relative to the parameter's gradient
  int64_t parameters = 0;

  // One more parameter, which is named if its error is the largest; a NaN is larger than any.
  void add(const std::string& name, double error_of_it);
};

// The derivative of the whole objective (loss and auxiliary losses) along two directions for every
// parameter: along its gradient, and along a random one, which sees what the gradient lacks. The
// experts' choices are held fixed. One entry a kind, in order of appearance.
std::vector<KindCheck> check_gradients(const Config& reduced);

}  // namespace sluice
