// The four notations of model.stack (layers/model_config.h), as far as layers of configuration need
// them: a layer may use one, and a key of another notation in a later layer discards the earlier
// notation whole.
#pragma once

#include "trainer/config_node.h"

namespace sluice {

// Sets of notations, as bits; the period and the ratio notation share keys.
enum StackNotations : unsigned {
  kNoStack = 0,
  kStackPattern = 1,
  kStackPeriod = 2,
  kStackRatio = 4,
  kStackBranches = 8,
};

// The notations that the keys under model.stack of one layer fit; kNoStack without such keys.
// Throws UsageError where they fit none.
unsigned stack_notations(const ConfigNode& layer);

// Takes model.stack out of `lower` where `layer` uses another notation.
void discard_other_stack(ConfigNode& lower, const ConfigNode& layer);

// Leaves of a written configuration's model.stack the keys of the notation in use, so that it can
// be read again.
void keep_used_stack(ConfigNode& written);

}  // namespace sluice
