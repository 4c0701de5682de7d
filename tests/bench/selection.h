// What a command line asks for: a device, a precision, operators, whole steps.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/step.h"

namespace sluice::bench {

inline constexpr const char* kStep = "step";  // whole training steps, after the operators

// device: auto, cpu or cuda. precision: f32 or bf16, "" for the device's own (f32 on the CPU, bf16
// on a GPU). Makes no stream. Throws UsageError for what this build or machine does not have.
Target choose_target(const std::string& device, const std::string& precision);

// Named, or nothing is named.
bool is_chosen(const std::vector<std::string>& ops, const std::string& name);

// The families chosen of those of plain shapes, or of the others, in the order of the output.
// Throws UsageError for an unknown name, and for plain shapes of a CPU, which has no fast ones.
std::vector<Family> select_families(const Target& target, const std::vector<std::string>& ops,
                                    bool plain);

// The steps chosen: none unless kStep is. Throws UsageError for an unknown model.
std::vector<StepCase> select_steps(const Target& target, const std::vector<std::string>& ops,
                                   const std::vector<std::string>& models);

}  // namespace sluice::bench
