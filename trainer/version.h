// What this binary is and what was built in.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sluice {

std::string version();     // "0.1.0"
std::string git_commit();  // "f00ba4c0ffee", with -dirty for changed files; "unknown" without git

// {"CUDA", "none"}, {"MPI", "Open MPI 4.1.4"}, ...
std::vector<std::pair<std::string, std::string>> built_in();

// The text of `sluice --version`.
std::string version_text();

}  // namespace sluice
