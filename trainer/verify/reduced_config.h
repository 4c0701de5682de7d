// A configuration cut down to what `verify` can afford, with every branch that differs kept.
#pragma once

#include <cstdint>

#include "trainer/config.h"

namespace sluice {

// Width, hidden sizes, experts, heads and vocabulary are cut; head counts keep what they divide by
// (up to 16), so that a layout takes the same path as in the whole model, and numbers of experts
// all of `world`'s ranks that they can be dealt to. The stack is every distinct branch, twice. A
// step has rows for every dp that `world` allows, and rows of odd length, so that shards are
// uneven. recompute, losses, options and the optimizer stay; initial values are larger, so that
// everything counts.
Config reduce_config(const Config& config, int world);

}  // namespace sluice
