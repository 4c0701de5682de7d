// Errors. A message says what was expected, what was got, and what to change; its type says which
// exit code the process leaves with. Library code throws; only main() prints and exits.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice {

// Exit codes are part of the interface (docs/exit-codes.md); mpirun passes them through.
enum class ExitCode : int {
  ok = 0,
  usage = 2,         // bad usage, configuration or mesh; memory that cannot fit
  data = 65,         // corrupt, hostile or mismatching data or checkpoint
  bug = 70,          // a failed invariant of sluice itself
  io = 74,           // disk full, permission, missing file, memory exhausted
  requeue = 75,      // checkpointed after a signal or a time limit
  hang = 76,         // lost peer, or ended by the watchdog
  not_finite = 77,   // loss not finite, gave up
  no_progress = 93,  // do not requeue
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// The user's request cannot be met: wrong option, configuration, mesh or path given.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message) : Error(ExitCode::usage, message) {}
};

// A file's content is not what it must be.
class DataError : public Error {
 public:
  explicit DataError(const std::string& message) : Error(ExitCode::data, message) {}
};

// The system refused: open, write, fsync, allocate.
class IoError : public Error {
 public:
  explicit IoError(const std::string& message) : Error(ExitCode::io, message) {}
};

template <class... Values>
std::string concat(const Values&... values) {
  std::ostringstream out;
  (out << ... << values);
  return std::move(out).str();
}

namespace detail {
[[noreturn]] inline void check_failed(const char* file, int line, const char* condition,
                                      const std::string& message) {
  throw Error(ExitCode::bug,
              concat(file, ":", line, ": ", message.empty() ? "check failed" : message, " [",
                     condition, "]"));
}
}  // namespace detail

}  // namespace sluice

// For invariants of sluice's own code, always on. A user's mistake throws UsageError or DataError.
#define SLUICE_CHECK(condition, ...)                                 \
  do {                                                               \
    if (!(condition)) {                                              \
      ::sluice::detail::check_failed(__FILE__, __LINE__, #condition, \
                                     ::sluice::concat(__VA_ARGS__)); \
    }                                                                \
  } while (0)

#ifdef NDEBUG
#define SLUICE_DCHECK(condition, ...) \
  do {                                \
  } while (0)
#else
#define SLUICE_DCHECK(condition, ...) SLUICE_CHECK(condition, __VA_ARGS__)
#endif
