// sluice-bench: every operator's speed beside what a copy and OpenBLAS reach in the same run.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "kernels/core/threads.h"
#include "tests/bench/report.h"
#include "tests/bench/selection.h"
#include "tests/bench/step.h"

namespace {

using namespace sluice;
using namespace sluice::bench;

void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

void run(const std::vector<Family>& families, bool steps, bool json) {
  const int threads = num_threads();
  Harness harness;
  const Ceilings first = harness.measure_ceilings();
  if (!json) print(table_head());
  for (const Family& family : families) {
    for (const Case& c : family.cases) {
      const Result result = harness.measure(family.name, c);
      print(json ? json_line(result, threads) : table_row(result));
    }
  }
  for (const StepCase& step : steps ? step_cases() : std::vector<StepCase>{}) {
    const StepResult result = measure_step(step, harness.measure_ceilings());
    print(json ? json_line(result, threads) : table_row(result));
  }
  const Ceilings last = harness.measure_ceilings();
  print(json ? json_ceilings(first, last, threads) : table_ceilings(first, last, threads));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times sluice's operators, forward and backward, against the machine's ceilings.");
  std::vector<std::string> ops;
  bool json = false;
  int threads = default_num_threads(1);
  app.add_option("--ops", ops, "operators to time, by commas (default: all)")->delimiter(',');
  app.add_flag("--json", json, "one JSON object a line");
  app.add_option("--threads", threads, "size of the pool (default: the cores)")
      ->check(CLI::Range(1, 1024));
  try {
    app.parse(argc, argv);
    set_num_threads(threads);
    run(select_families(ops), is_chosen(ops, kStep), json);
    return int(ExitCode::ok);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? int(ExitCode::ok) : int(ExitCode::usage);
  } catch (const Error& error) {
    std::fprintf(stderr, "sluice-bench: %s\n", error.what());
    return int(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sluice-bench: %s\n", error.what());
    return int(ExitCode::bug);
  }
}
