// All ranks must run the same program on the same configuration: otherwise they would wait for each
// other, or train something that nobody has asked for.
#pragma once

#include <string>
#include <vector>

#include "trainer/checkpoint/config_lock.h"
#include "trainer/checkpoint/peers.h"
#include "trainer/config.h"

namespace sluice {

// Dotted keys of the resolved configuration; entries of lists by index.
FlatConfig flat_config(const Config& config);

// Version, commit, what was built in, and the hash of the executable: program.version, ...
FlatConfig program_facts();

// Collective; sends a hash unless there is something to tell. Throws AgreedFailure (usage) on all
// ranks, naming the keys that differ, their values and who has which.
void require_same(CheckpointPeers& peers, const FlatConfig& facts);

// Collective. The configuration of a command's arguments. Throws AgreedFailure on all ranks if one
// of them cannot read it, or if it, the program or `more` is not the same everywhere.
Config load_same_config(CheckpointPeers& peers, const std::string& path,
                        const std::vector<std::string>& overrides, const FlatConfig& more = {});

}  // namespace sluice
