// Which of the operators, and whether whole steps, a command line asks for.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/workload.h"

namespace sluice::bench {

inline constexpr const char* kStep = "step";  // whole training steps, after the operators

// Named, or nothing is named.
bool is_chosen(const std::vector<std::string>& ops, const std::string& name);

// The families chosen, in the order of the output. Throws UsageError for an unknown name.
std::vector<Family> select_families(const std::vector<std::string>& ops);

}  // namespace sluice::bench
