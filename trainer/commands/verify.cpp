// sluice verify
#include "kernels/core/threads.h"
#include "parallel/world.h"
#include "trainer/agreement.h"
#include "trainer/commands/commands.h"
#include "trainer/verify/verification.h"

namespace sluice {

namespace {

int verify_config(const VerifyOptions& options, World& world) {
  const Config config = load_config(options.config, options.overrides).config;
  set_num_threads(default_num_threads(world.local_size));
  const bool table = !options.json && world.comm->rank() == 0;
  if (table) print(layout_table_head());
  const Verification verification = verify(config, world, {.report = [&](const LayoutCheck& check) {
                                             if (table) print(describe_layout(check));
                                           }});
  if (table) print(describe_kinds(verification));
  if (options.json && world.comm->rank() == 0) print(to_json(verification).dump() + "\n");
  if (table) print(verification.holds() ? "all hold\n" : "FAILED\n");
  return verification.holds() ? 0 : int(ExitCode::bug);
}

}  // namespace

int run_verify(const VerifyOptions& options) {
  World world = make_world();
  return run_on_world(world, [&] { return verify_config(options, world); });
}

}  // namespace sluice
