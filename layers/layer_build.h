// What a layer is given when it is built, beside its own configuration.
#pragma once

#include <string>

#include "layers/parameter_store.h"

namespace sluice {

struct LayerBuild {
  ParameterStore& store;
  std::string prefix;  // "branches.3.mamba2."
  int64_t branch_index = 0;
  int64_t d_model = 0;        // D
  int64_t num_residuals = 1;  // branches of the stack: output projections start at 1/sqrt of it
  double norm_eps = 1e-5;
};

}  // namespace sluice
