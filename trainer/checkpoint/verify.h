// Finds the newest checkpoint that is good: its manifest, every file's size and every file's hash.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/peers.h"

namespace sluice {

struct VerifiedCheckpoint {
  std::string folder;
  Manifest manifest;
};

struct FoundCheckpoint {
  std::optional<VerifiedCheckpoint> checkpoint;  // none: the run has none, good or bad
  std::vector<std::string> warnings;             // one for every newer one that was passed over
};

// Reads and checks the manifest alone. Throws DataError, IoError.
Manifest read_manifest(const std::string& folder);

// Collective; every rank gets the same, the ranks share the reading. Throws DataError, on all
// ranks, naming file, tensor, expected and actual hash; IoError if a file cannot be read.
VerifiedCheckpoint verify_checkpoint(const std::string& folder, CheckpointPeers& peers);

// Collective. Newest first; a damaged one is passed over with a warning. Throws DataError if there
// are checkpoints and none is good.
FoundCheckpoint find_checkpoint(const std::string& checkpoints, CheckpointPeers& peers);

// What is wrong with the sizes of the files, without reading them; "" if nothing is.
std::string size_problem(const std::string& folder, const Manifest& manifest);

}  // namespace sluice
