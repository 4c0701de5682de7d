// sluice verify
#include "kernels/core/threads.h"
#include "parallel/world.h"
#include "trainer/agreement.h"
#include "trainer/commands/commands.h"
#include "trainer/device_choice.h"
#include "trainer/same_program.h"
#include "trainer/verify/verification.h"

namespace sluice {

namespace {

// Ranks that are threads stay on the CPU.
Device device_of(const Config& config, const World& world) {
  if (world.comm->size() == 1) return kCpu;
  return choose_device(config.device, Precision::f32,
                       {.rank = world.local_rank, .size = world.local_size});
}

int verify_config(const VerifyOptions& options, World& world) {
  CommunicatorPeers peers(*world.comm);
  const Config config = load_same_config(peers, options.config, options.overrides);
  Device device;
  agree(peers, [&] { device = device_of(config, world); });
  set_num_threads(default_num_threads(world.local_size));
  const OwnedStream stream(device);
  const Place place{.device = device, .stream = stream};
  DeviceWorld ranks(*world.comm, place);
  const bool table = !options.json && world.comm->rank() == 0;
  if (table) print(layout_table_head());
  const VerifyScope scope{.report =
                              [&](const LayoutCheck& check) {
                                if (table) print(describe_layout(check));
                              },
                          .place = place,
                          .device_world = device.is_cuda() ? &ranks.comm() : nullptr};
  const Verification verification = verify(config, world, scope);
  ranks.shutdown();
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
