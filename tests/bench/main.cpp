// sluice-bench: every operator's speed beside what a copy and a square matrix product reach in the
// same run.
#include <CLI/CLI.hpp>

#include "kernels/core/error.h"
#include "kernels/core/threads.h"
#include "tests/bench/run.h"

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr int kIncomplete = 1;  // exit code: something that was asked for could not be timed

void add_options(CLI::App& app, Options& options) {
  app.add_option("--ops", options.ops, "operators to time, by commas (default: all)")
      ->delimiter(',');
  app.add_option("--models", options.models, "configurations to time steps of (default: all)")
      ->delimiter(',');
  app.add_option("--configs", options.configs, "folder of these configurations");
  app.add_option("--device", options.device, "auto (a GPU if there is one), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--precision", options.precision,
                 "of activations and matrices: f32 or bf16 (default: bf16 on a GPU)")
      ->check(CLI::IsMember({"f32", "bf16"}));
  app.add_flag("--plain", options.plain,
               "shapes that miss a GPU's fast kernels, beside neighbours that do not");
  app.add_flag("--json", options.json, "one JSON object a line");
  app.add_option("--threads", options.threads, "size of the pool (default: the cores)")
      ->check(CLI::Range(1, 1024));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times sluice's operators, forward and backward, against the machine's ceilings.");
  Options options;
  add_options(app, options);
  try {
    app.parse(argc, argv);
    set_num_threads(options.threads);
    return run(options) ? int(ExitCode::ok) : kIncomplete;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? int(ExitCode::ok) : int(ExitCode::usage);
  } catch (const Error& error) {
    complain(error.what());
    return int(error.code());
  } catch (const std::exception& error) {
    complain(error.what());
    return int(ExitCode::bug);
  }
}
