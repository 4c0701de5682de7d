// Results as JSON lines or as a table.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "tests/bench/harness.h"

namespace sluice::bench {

// What a line says of where it was measured.
struct Machine {
  int threads = 1;  // of the CPU
  std::string gpu;  // its name; empty: operators run on the CPU
  DType dtype = DType::f32;
};
Machine machine_of(const Target& target, int threads);
void add_machine(nlohmann::ordered_json& line, const Machine& machine);

// One line each, with the newline.
std::string json_line(const Result& result, const Machine& machine);
std::string json_ceilings(const Ceilings& first, const Ceilings& last, const Machine& machine);

std::string table_head(const Machine& machine);
std::string table_row(const Result& result, const Machine& machine);
std::string table_ceilings(const Ceilings& first, const Ceilings& last, const Machine& machine);

// "" while two readings of the ceilings agree. Where they do not, something else used the device,
// and the run is to be discarded.
std::string unsteady(const Ceilings& first, const Ceilings& last);

}  // namespace sluice::bench
