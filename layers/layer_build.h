// What a layer is given when it is built, beside its own configuration.
#pragma once

#include <string>

#include "layers/parameter_store.h"

namespace sluice {

class Communicator;

// The ranks that a layer may talk to. Null, or of one rank: it has the whole axis itself. They
// outlive the layer.
struct LayerGroups {
  Communicator* sequence = nullptr;  // cp: other tokens of the same rows
  Communicator* experts = nullptr;   // ep: other experts (and other rows)
};

struct LayerBuild {
  ParameterStore& store;
  std::string prefix;  // "branches.3.mamba2."
  int64_t branch_index = 0;
  int64_t d_model = 0;        // D
  int64_t num_residuals = 1;  // branches of the stack: output projections start at 1/sqrt of it
  double norm_eps = 1e-5;
  LayerGroups groups = {};
  bool carry_state = false;  // rows may start from the state that the step before ended with
};

}  // namespace sluice
