// Results as JSON lines or as a table.
#pragma once

#include <string>

#include "tests/bench/harness.h"

namespace sluice::bench {

// One line each, with the newline.
std::string json_line(const Result& result, int num_threads);
std::string json_ceilings(const Ceilings& first, const Ceilings& last, int num_threads);

std::string table_head();
std::string table_row(const Result& result);
std::string table_ceilings(const Ceilings& first, const Ceilings& last, int num_threads);

}  // namespace sluice::bench
