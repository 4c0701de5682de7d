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
      : Bench(choose_target(options.device, options.precision), options) {}

  // False if something could not be timed.
  bool run() {
    const std::unique_ptr<Harness> harness = make_harness(target_);
    const Ceilings first = harness->measure_ceilings();
    if (!json_) print(table_head(machine_));
    for (const Family& family : families_) time(*harness, family);
    for (const StepCase& step : steps_) time(*harness, step, first);
    const Ceilings last = harness->measure_ceilings();
    print(json_ ? json_ceilings(first, last, machine_) : table_ceilings(first, last, machine_));
    const std::string warning = unsteady(first, last);
    if (target_.device.is_cuda() && !warning.empty()) complain(warning);
    return complete_;
  }

 private:
  Bench(const Target& target, const Options& options)
      : stream_(target.device),
        target_{.device = target.device, .dtype = target.dtype, .stream = stream_},
        families_(select_families(target_, options.ops, options.plain)),
        steps_(options.plain ? std::vector<StepCase>{}
                             : select_steps(target_, options.ops, options.models)),
        configs_(options.configs),
        json_(options.json),
        machine_(machine_of(target_, options.threads)) {}

  void time(Harness& harness, const Family& family) {
    for (const Case& c : family.cases) {
      attempt(family.name, [&] {
        const Result result = harness.measure(family.name, c);
        print(json_ ? json_line(result, machine_) : table_row(result, machine_));
      });
    }
  }

  void time(Harness& harness, const StepCase& step, const Ceilings& first) {
    attempt(concat(kStep, " of ", step.config), [&] {
      // Other programs share a CPU: what it reaches is asked again.
      const Ceilings ceilings = target_.device.is_cuda() ? first : harness.measure_ceilings();
      const StepResult result = measure_step(step, configs_, target_, ceilings);
      print(json_ ? json_line(result, machine_) : table_row(result));
    });
  }

  // An operator that a device lacks, or a shape that its memory does not hold, leaves the others
  // their turns; the same complaint is made once. What breaks the device itself ends the run.
  void attempt(const std::string& name, const std::function<void()>& measure) {
    try {
      measure();
    } catch (const Error& error) {
      if (target_.device.is_cpu()) throw;
      target_.stream.sync();
      complete_ = false;
      const std::string complaint = name + ": " + error.what();
      if (complaint != said_) complain(complaint);
      said_ = complaint;
    }
  }

  OwnedStream stream_;
  Target target_;
  std::vector<Family> families_;
  std::vector<StepCase> steps_;
  std::string configs_;
  bool json_;
  Machine machine_;
  bool complete_ = true;
  std::string said_;  // last, to stderr
};

}  // namespace

void complain(const std::string& text) { std::fprintf(stderr, "sluice-bench: %s\n", text.c_str()); }

bool run(const Options& options) { return Bench(options).run(); }

}  // namespace sluice::bench
