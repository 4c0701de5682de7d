// env.json: what a run ran on, for people who compare runs later.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

struct RunEnvironment {
  int64_t world = 1;
  int64_t threads = 1;  // of a rank
  std::string mesh = {};
  std::string device = {};  // of this rank, as RuntimeInfo has it
  std::vector<std::string> arguments = {};
};

std::string environment_json(const RunEnvironment& run);

}  // namespace sluice
