// How an error leaves the program: a few lines on stderr and an exit code.
#pragma once

#include <exception>
#include <string>

namespace sluice {

inline constexpr int kMaxErrorLines = 5;

// The exit code of reliability: Error's own, 74 where memory ran out, 70 for anything unforeseen.
int exit_code_of(const std::exception& error);

// "sluice: error: ..." of at most kMaxErrorLines lines; under a launcher with "[rank r]" in front
// of the first. A usage error is the same on every rank, so ranks other than 0 keep to its first
// line.
std::string error_text(const std::exception& error, const std::string& rank);

// The rank that the launcher's environment names, before MPI is asked; "" without one.
std::string launcher_rank();

// Prints error_text() to stderr and returns exit_code_of().
int report_error(const std::exception& error);

}  // namespace sluice
