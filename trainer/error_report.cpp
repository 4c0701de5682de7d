#include "trainer/error_report.h"

#include <cstdio>
#include <cstdlib>
#include <new>

#include "kernels/core/error.h"

namespace sluice {
namespace {

std::string first_lines(const std::string& text, int count) {
  size_t end = 0;
  for (int line = 0; line < count && end < text.size(); ++line) {
    end = std::min(text.find('\n', end), text.size() - 1) + 1;
  }
  while (end > 0 && text[end - 1] == '\n') --end;
  return text.substr(0, end);
}

}  // namespace

int exit_code_of(const std::exception& error) {
  if (const auto* known = dynamic_cast<const Error*>(&error)) return int(known->code());
  const bool no_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  return int(no_memory ? ExitCode::io : ExitCode::bug);
}

std::string error_text(const std::exception& error, const std::string& rank) {
  std::string message = error.what();
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    message = "out of memory; try a smaller train.micro_batch, or train.recompute=full";
  } else if (dynamic_cast<const Error*>(&error) == nullptr) {
    message = "unexpected: " + message;
  }
  const bool same_everywhere = exit_code_of(error) == int(ExitCode::usage);
  const bool brief = same_everywhere && !rank.empty() && rank != "0";
  const std::string prefix = rank.empty() ? "" : "[rank " + rank + "] ";
  return prefix + "sluice: error: " + first_lines(message, brief ? 1 : kMaxErrorLines) + "\n";
}

std::string launcher_rank() {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return value;
  }
  return "";
}

int report_error(const std::exception& error) {
  const std::string text = error_text(error, launcher_rank());
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
  return exit_code_of(error);
}

}  // namespace sluice
