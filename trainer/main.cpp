#include <csignal>
#include <cstdio>
#include <exception>

#include "kernels/core/error.h"
#include "trainer/command_line.h"
#include "trainer/commands/commands.h"
#include "trainer/error_report.h"

int main(int argc, char** argv) {
  using namespace sluice;
  // A reader that goes away (sluice ... | head) must not end a run.
  std::signal(SIGPIPE, SIG_IGN);
  // A file size limit is an error like a full disk, not a death.
  std::signal(SIGXFSZ, SIG_IGN);
  int code = 0;
  try {
    code = run_command_line(commands(), {argv + 1, argv + argc});
  } catch (const std::exception& error) {
    code = report_error(error);
  }
  const bool lost_output = std::fflush(stdout) != 0 || std::ferror(stdout) != 0;
  return code == 0 && lost_output ? int(ExitCode::io) : code;
}
