// Explicit branches of a stack, `{type: mamba2, state_dim: 64}`: the section of that kind with
// overrides. Extends the configuration reader to BranchConfig (layers/registry.h).
#pragma once

#include "layers/registry.h"
#include "trainer/config_reader.h"

namespace sluice {

// Reads model.<type> as far as it is written, then the branch's own keys over it.
void read_config(ConfigReader& reader, const ConfigNode& node, const std::string& path,
                 BranchConfig& branch);

ConfigNode write_config(const BranchConfig& branch, const OriginMap& origins,
                        const std::string& path);

}  // namespace sluice
