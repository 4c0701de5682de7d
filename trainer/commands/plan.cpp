#include "trainer/plan.h"

#include "trainer/commands/commands.h"

namespace sluice {

int run_plan(const PlanOptions& options) {
  const Config config = load_config(options.config, options.overrides).config;
  const Plan plan = make_plan(config, int(options.world));
  print(options.json ? to_json(plan).dump() + "\n" : describe(plan));
  return 0;
}

}  // namespace sluice
