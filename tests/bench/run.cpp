#include "tests/bench/run.h"

#include <cstdio>

#include "kernels/core/device_memory.h"
#include "tests/bench/report.h"
#include "tests/bench/selection.h"
#include "tests/bench/step.h"

namespace sluice::bench {
namespace {

void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : target_(choose_target(options.device, options.precision)),
        families_(select_families(with_stream(), options.ops)),
        steps_(is_chosen(options.ops, kStep) ? step_cases(target_) : std::vector<StepCase>{}),
        json_(options.json),
        machine_(machine_of(target_, options.threads)) {}
  ~Bench() { destroy_stream(target_.stream); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // False if something could not be timed.
  bool run() {
    const std::unique_ptr<Harness> harness = make_harness(target_);
    const Ceilings first = harness->measure_ceilings();
    if (!json_) print(table_head(machine_));
    for (const Family& family : families_) time(*harness, family);
    for (const StepCase& step : steps_) {
      const StepResult result = measure_step(step, harness->measure_ceilings());
      print(json_ ? json_line(result, machine_.threads) : table_row(result));
    }
    const Ceilings last = harness->measure_ceilings();
    print(json_ ? json_ceilings(first, last, machine_) : table_ceilings(first, last, machine_));
    const std::string warning = unsteady(first, last);
    if (target_.device.is_cuda() && !warning.empty()) complain(warning);
    return complete_;
  }

 private:
  const Target& with_stream() {
    target_.stream = make_stream(target_.device);
    return target_;
  }

  // An operator that a device lacks, or a shape that its memory does not hold, leaves the others
  // their turns. What breaks the device itself ends the run.
  void time(Harness& harness, const Family& family) {
    std::string said;
    for (const Case& c : family.cases) {
      try {
        const Result result = harness.measure(family.name, c);
        print(json_ ? json_line(result, machine_) : table_row(result, machine_));
      } catch (const Error& error) {
        if (target_.device.is_cpu()) throw;
        target_.stream.sync();
        complete_ = false;
        if (said != error.what()) complain(family.name + ": " + error.what());
        said = error.what();
      }
    }
  }

  Target target_;
  std::vector<Family> families_;
  std::vector<StepCase> steps_;
  bool json_;
  Machine machine_;
  bool complete_ = true;
};

}  // namespace

void complain(const std::string& text) { std::fprintf(stderr, "sluice-bench: %s\n", text.c_str()); }

bool run(const Options& options) { return Bench(options).run(); }

}  // namespace sluice::bench
